"""The names that kube-proxy, in all of its modes, and pyproxy use in the kernel.

Facts: the cleanup of each mode in kube-proxy's sources (pkg/proxy/nftables, iptables and ipvs, up
to v1.36), which `kube-proxy --cleanup` runs. It leaves kubelet's chains, which are not named here:
KUBE-FIREWALL, KUBE-MARK-DROP, KUBE-KUBELET-CANARY and KUBE-IPTABLES-HINT. kube-proxy creates
KUBE-FIREWALL too if kubelet has not, and never removes it. The chain protects loopback addresses,
and must do so as long as the sysctl route_localnet is on.

kube-proxy's cleanup also leaves the two nfacct objects of its iptables mode.

pyproxy's iptables mode takes kube-proxy's chains over by their names, and adds some of its own.
"""

from __future__ import annotations

NFTABLES_TABLE = "kube-proxy"
"""kube-proxy's nftables table, in the families ip and ip6."""

DEVICE = "kube-ipvs0"
"""The device of service addresses in ipvs mode, both kube-proxy's and pyproxy's."""

INVALID_DROPPED = "ct_state_invalid_dropped_pkts"
LOCALHOST_ACCEPTED = "localhost_nps_accepted_pkts"
COUNTERS = frozenset({INVALID_DROPPED, LOCALHOST_ACCEPTED})
"""nfacct objects, which kube-proxy's metrics of the same names are read from."""

PREFIX = "KUBE-"
SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
FORWARD = "KUBE-FORWARD"
POSTROUTING = "KUBE-POSTROUTING"
FIREWALL = "KUBE-PROXY-FIREWALL"
# An empty chain: kube-proxy notices by its absence that the tables were flushed.
CANARY = "KUBE-PROXY-CANARY"
MARK_MASQUERADE = "KUBE-MARK-MASQ"
"""Other programs may jump to it, to have a connection masqueraded."""
NODE_PORTS = "KUBE-NODEPORTS"
"""kube-proxy always has a rule that jumps to it; pyproxy never has one."""

MARK_EXTERNAL = "KUBE-MARK-OUTSIDE"
REFUSE = "KUBE-REFUSE"
ACCEPT = "KUBE-ACCEPT"
"""These three are pyproxy's alone."""

SERVICE_TREE = "KUBE-IP-"
REFUSED_TREE = "KUBE-NO-"
"""Prefixes of pyproxy's chains that lead to Services, and to frontends without endpoints."""

SERVICE, LOCAL, EXTERNAL = "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-"
SOURCE_RANGES, ENDPOINT = "KUBE-FW-", "KUBE-SEP-"
"""Prefixes of a Service port's chains, in kube-proxy and in pyproxy."""

_TREES = (SERVICE_TREE, REFUSED_TREE)
# kube-proxy up to v1.23 had KUBE-XLB- in the place of KUBE-SVL- and KUBE-EXT-.
_SERVICE_PORT = (SERVICE, LOCAL, EXTERNAL, SOURCE_RANGES, ENDPOINT, "KUBE-XLB-")

_IPTABLES = {
    "nat": {MARK_MASQUERADE, NODE_PORTS, POSTROUTING, CANARY, SERVICES},
    "filter": {EXTERNAL_SERVICES, FORWARD, NODE_PORTS, CANARY, FIREWALL, SERVICES},
    "mangle": {CANARY},
}
_IPVS = {
    "nat": {"KUBE-LOAD-BALANCER", "KUBE-NODE-PORT"},
    "filter": {
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        "KUBE-NODE-PORT",
        "KUBE-SOURCE-RANGES-FIREWALL",
    },
}
_PYPROXY = {
    "nat": {MARK_EXTERNAL},
    "filter": {ACCEPT, REFUSE},
    "mangle": {FIREWALL},
}
_PREFIXES = (*_TREES, *_SERVICE_PORT)
_ANY_TABLE = frozenset().union(*_IPTABLES.values(), *_PYPROXY.values())

ENTRIES = frozenset(
    {
        ACCEPT,
        EXTERNAL_SERVICES,
        FORWARD,
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
        "KUBE-NODE-PORT",
        NODE_PORTS,
        POSTROUTING,
        FIREWALL,
        SERVICES,
    }
)
"""The chains that rules of kube-proxy or pyproxy in the built-in chains jump to."""

NODE_PORT_SETS = {
    "KUBE-NODE-PORT-LOCAL-TCP": 6,
    "KUBE-NODE-PORT-TCP": 6,
    "KUBE-NODE-PORT-LOCAL-UDP": 17,
    "KUBE-NODE-PORT-UDP": 17,
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH": 132,
    "KUBE-NODE-PORT-SCTP-HASH": 132,
}
"""kube-proxy's ipsets of node ports in ipvs mode, with the number of their protocol."""

# IPSET_MAXNAMELEN is 32, with the zero byte at the end.
_IPSET_NAME_LIMIT = 31
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
    """Return the name of the same ipset for IPv6, which kube-proxy cuts at ipset's limit."""
    return name.replace("KUBE-", "KUBE-6-", 1)[:_IPSET_NAME_LIMIT]


SETS = frozenset(_IPV4_SETS) | frozenset(map(ipv6_set, _IPV4_SETS))
"""All ipsets of kube-proxy's ipvs mode."""


def is_iptables_mode(chain: str) -> bool:
    """Return whether the iptables mode of pyproxy or of kube-proxy uses this name."""
    return chain in _ANY_TABLE or chain.startswith(_PREFIXES)


def is_owned(table: str, chain: str) -> bool:
    """Return whether a chain is kube-proxy's, of any mode, or pyproxy's."""
    # The part of the name after the prefix is a hash, so these chains are known by prefix only.
    if table == "nat" and chain.startswith(_SERVICE_PORT):
        return True
    return (
        chain in _IPTABLES.get(table, ())
        or is_kube_proxy_ipvs(table, chain)
        or is_pyproxy(table, chain)
    )


def is_kube_proxy_ipvs(table: str, chain: str) -> bool:
    """Return whether a chain belongs to kube-proxy's ipvs mode and to no other."""
    return chain in _IPVS.get(table, ())


def is_pyproxy(table: str, chain: str) -> bool:
    """Return whether a chain is pyproxy's, and kube-proxy has none of this name in this table."""
    # kube-proxy has KUBE-FW- chains in nat only; pyproxy's in filter precede a rejection.
    if table == "filter" and chain.startswith(SOURCE_RANGES):
        return True
    return chain.startswith(_TREES) or chain in _PYPROXY.get(table, ())
