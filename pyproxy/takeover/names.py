"""What kube-proxy calls its own, in all of its modes.

Facts: the cleanup of each mode in kube-proxy's sources (pkg/proxy/nftables, iptables and ipvs, up
to v1.36), which `kube-proxy --cleanup` runs. What that spares is not named here: KUBE-FIREWALL,
KUBE-MARK-DROP, KUBE-KUBELET-CANARY and KUBE-IPTABLES-HINT are kubelet's. kube-proxy makes
KUBE-FIREWALL too, but only where kubelet has not, and never removes it: it keeps others away from
loopback addresses, which must go on for as long as the sysctl route_localnet is on.

Beyond its cleanup kube-proxy makes two nfacct objects in iptables mode, and spares them.

pyproxy's iptables mode takes kube-proxy's chains over by their names and adds some of its own.
"""

from __future__ import annotations

NFTABLES_TABLE = "kube-proxy"
"""Of the families ip and ip6."""

MARK_CHAIN = "KUBE-MARK-MASQ"
"""The chain that other programs are told to jump to, to have a connection masqueraded."""

ENTRIES = frozenset(
    {
        "KUBE-ACCEPT",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FORWARD",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        "KUBE-NODE-PORT",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-PROXY-FIREWALL",
        "KUBE-SERVICES",
    }
)
"""The chains that kube-proxy, or pyproxy, has iptables' built-in chains jump to."""

NODE_PORTS = "KUBE-NODEPORTS"
"""The chain that kube-proxy always leads to, and pyproxy never."""

_CANARY = "KUBE-PROXY-CANARY"
_CHAINS = {
    "nat": {
        "KUBE-LOAD-BALANCER",
        MARK_CHAIN,
        "KUBE-NODE-PORT",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        _CANARY,
        "KUBE-SERVICES",
    },
    "filter": {
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FORWARD",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        "KUBE-NODE-PORT",
        "KUBE-NODEPORTS",
        _CANARY,
        "KUBE-PROXY-FIREWALL",
        "KUBE-SERVICES",
        "KUBE-SOURCE-RANGES-FIREWALL",
    },
    "mangle": {_CANARY},
}
_ONLY_OF_IPVS = {
    "nat": {"KUBE-LOAD-BALANCER", "KUBE-NODE-PORT"},
    "filter": {
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        "KUBE-NODE-PORT",
        "KUBE-SOURCE-RANGES-FIREWALL",
    },
}
_PYPROXYS = {
    "nat": {"KUBE-MARK-OUTSIDE"},
    "filter": {"KUBE-ACCEPT", "KUBE-REFUSE"},
    "mangle": {"KUBE-PROXY-FIREWALL"},
}
_PYPROXYS_TREES = ("KUBE-IP-", "KUBE-NO-")
_SERVICE_CHAINS = ("KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-XLB-")

DEVICE = "kube-ipvs0"

NODE_PORT_SETS = {
    "KUBE-NODE-PORT-LOCAL-TCP": 6,
    "KUBE-NODE-PORT-TCP": 6,
    "KUBE-NODE-PORT-LOCAL-UDP": 17,
    "KUBE-NODE-PORT-UDP": 17,
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH": 132,
    "KUBE-NODE-PORT-SCTP-HASH": 132,
}
"""The sets of IPVS mode that hold node ports, and their protocol's number."""

_NAME_LIMIT = 31
_IPV4_SETS = (
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
    "KUBE-HEALTH-CHECK-NODE-PORT",
    "KUBE-IPVS-IPS",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-LOCAL",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-LOOP-BACK",
    *NODE_PORT_SETS,
)


def ipv6_set(name: str) -> str:
    """Name the same set for IPv6; kube-proxy cuts it where ipset allows no more."""
    return name.replace("KUBE-", "KUBE-6-", 1)[:_NAME_LIMIT]


SETS = frozenset(_IPV4_SETS) | frozenset(map(ipv6_set, _IPV4_SETS))

COUNTERS = frozenset({"ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"})


def owns_chain(table: str, chain: str) -> bool:
    """Tell whether an iptables chain is kube-proxy's, or one of pyproxy's in its place."""
    if table == "nat" and chain.startswith(_SERVICE_CHAINS):
        return True
    return chain in _CHAINS.get(table, ()) or is_pyproxys(table, chain)


def is_of_ipvs(table: str, chain: str) -> bool:
    """Tell whether an iptables chain is one that kube-proxy has in IPVS mode and in no other."""
    return chain in _ONLY_OF_IPVS.get(table, ())


def is_pyproxys(table: str, chain: str) -> bool:
    """Tell whether an iptables chain is pyproxy's, and none of kube-proxy's is called so."""
    return chain.startswith(_PYPROXYS_TREES) or chain in _PYPROXYS.get(table, ())
