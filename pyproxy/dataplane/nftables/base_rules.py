"""The base rules of table `inet pyproxy`: constant, whatever the Services are.

No chain and no rule stands for a Service or an endpoint, so the text depends on the agent's
configuration alone. The chains that pick an endpoint are in `chains`.
"""

from __future__ import annotations

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.base_rules import REFUSE, BaseRules, TrafficOptions
from pyproxy.dataplane.nft.schema import SetKind, by_name
from pyproxy.dataplane.nftables import chains, offload_chain, schema
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import Family

_SHIELD = 'iifname != "lo" ip daddr 127.0.0.0/8 ct state new,invalid,untracked drop'


class NftablesOptions(TrafficOptions, frozen=True):
    """The part of the configuration that the base rules depend on.

    `shield_loopback` drops what other machines send to 127.0.0.0/8. The kernel does so itself
    unless route_localnet is set, which node ports on loopback addresses need. With
    `endpoint_counters` the elements of frontends and of endpoints count connections. With `offload`
    the table has the sets that the fast path looks up.
    """

    shield_loopback: bool = False
    endpoint_counters: bool = False
    offload: bool = False


def base_rules(options: NftablesOptions) -> BaseRules:
    """Return the base rules for these options."""
    counted = schema.COUNTED if options.endpoint_counters else ()
    return BaseRules(
        table=TABLE,
        title="Kubernetes Services, by pyproxy",
        kinds=schema.BY_NAME if options.offload else _WITHOUT_OFFLOAD,
        hooks=_HOOKS,
        chains=_chains(options),
        counted=frozenset(kind.of(family) for kind in counted for family in Family),
        is_on_demand=_is_on_demand,
        version=chains.fingerprint(),
    )


_WITHOUT_OFFLOAD = by_name(each for each in schema.SETS if each not in schema.OFFLOAD)

# Priorities in output are numbers because nft 1.0.6 accepts the name dstnat in prerouting only.
_HOOKS = {
    # Before the translation, so that source ranges are tested against the frontend, and after
    # conntrack at -200, which sets `ct state`.
    "filter-prerouting": "type filter hook prerouting priority dstnat - 10; policy accept;",
    "filter-output-before": "type filter hook output priority -110; policy accept;",
    "nat-prerouting": "type nat hook prerouting priority dstnat; policy accept;",
    "nat-output": "type nat hook output priority -100; policy accept;",
    "filter-input": "type filter hook input priority filter; policy accept;",
    "filter-forward": "type filter hook forward priority filter; policy accept;",
    "filter-output": "type filter hook output priority filter; policy accept;",
    "nat-postrouting": "type nat hook postrouting priority srcnat; policy accept;",
}


def _is_on_demand(name: str) -> bool:
    return name in offload_chain.CHAINS or chains.is_on_demand(name)


def _chains(options: NftablesOptions) -> dict[str, list[str]]:
    new = "ct state new jump"
    shield = [_SHIELD] if options.shield_loopback else []
    return {
        "filter-prerouting": [*shield, f"{new} source-ranges"],
        "filter-output-before": [f"{new} source-ranges"],
        # The kernel runs nat chains for the first packet of a connection only.
        "nat-prerouting": ["jump services"],
        "nat-output": ["jump services"],
        # After the translation: a packet that still has a frontend as its destination has no
        # endpoint. No interface has a cluster IP, so packets to one are never input.
        "filter-input": [f"{new} no-endpoints"],
        "filter-forward": [f"{new} no-endpoints", f"{new} no-such-port"],
        "filter-output": [f"{new} no-endpoints", f"{new} no-such-port"],
        # Replies need no rule: conntrack reverts both translations by itself.
        "nat-postrouting": ["jump masquerading"],
        "services": [rule for family in Family for rule in _services(family, options)],
        **{f"split{family.value}": _split(family, options) for family in Family},
        **{
            f"split-node{family.value}": _split(
                family, options, schema.INTERNAL_NODE_PORTS, schema.EXTERNAL_NODE_PORTS
            )
            for family in Family
        },
        "source-ranges": [_source_ranges(family) for family in Family],
        "no-endpoints": [
            *(f"{nft.NO_ENDPOINT_SERVICES.lookup(f)} goto refuse" for f in Family),
            *(f"{_at_node(schema.NO_ENDPOINT_NODE_PORTS, f)} goto refuse" for f in Family),
        ],
        "no-such-port": [f"{nft.CLUSTER_IPS.lookup(f)} goto refuse" for f in Family],
        "refuse": [*REFUSE],
        chains.MARKING: [options.set_mark()],
        "masquerading": _masquerading(options),
    }


def _services(family: Family, options: NftablesOptions) -> list[str]:
    rules = []
    to_cluster_ip = nft.CLUSTER_IPS.lookup(family)
    if options.masquerade_all:
        rules.append(f"{to_cluster_ip} {options.set_mark()}")
    # As in kube-proxy: another machine may route the cluster IPs to any node, and endpoints on
    # other nodes must reply through this one.
    elif from_outside := options.from_pods(family, negate=True):
        rules.append(f"{to_cluster_ip} {from_outside} {options.set_mark()}")
    # Node ports first: while an older version's table is taken over, the map of services still has
    # elements for them, which lead to endpoints that may be gone.
    return [*rules, _at_node(schema.NODE_PORTS, family), schema.SERVICES.lookup(family)]


def _at_node(kind: SetKind, family: Family) -> str:
    """Return the match of a packet to a node port in a set, at any of the node's addresses."""
    return f"{schema.NODE_PORT_ADDRESSES.lookup(family)} {kind.lookup(family)}"


def _split(
    family: Family,
    options: NftablesOptions,
    internal_kind: SetKind = schema.INTERNAL_SERVICES,
    external_kind: SetKind = schema.EXTERNAL_SERVICES,
) -> list[str]:
    internal = internal_kind.lookup(family)
    pods = options.from_pods(family)
    # kube-proxy too gives pods and the node all endpoints under the external policy Local.
    # The first match decides: internal clients, then external ones.
    return [
        *([f"{pods} {internal}"] if pods else []),
        # The node chose its source address on the route to the frontend, not to the endpoint.
        f"fib saddr type local {options.set_mark()} {internal}",
        external_kind.lookup(family),
    ]


def _source_ranges(family: Family) -> str:
    with_ranges = nft.SOURCE_RANGE_FRONTENDS.lookup(family)
    return f"{with_ranges} {nft.SOURCES.lookup(family, negate=True)} drop"


def _masquerading(options: NftablesOptions) -> list[str]:
    # Without fully-random, flows that start at once may get the same port, and conntrack drops all
    # but one of them.
    bit = f"{options.mark:#010x}"
    return [
        # Clear the bit: hooks behind this one and tunnels must not see it.
        f"meta mark & {bit} != 0 meta mark set meta mark ^ {bit} masquerade fully-random",
        *(
            # dnat: a pod that reaches itself directly is not masqueraded.
            f"ct status dnat {nft.HAIRPIN.lookup(family)} masquerade fully-random"
            for family in Family
        ),
    ]
