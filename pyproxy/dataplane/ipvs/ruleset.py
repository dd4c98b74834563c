"""The base rules around IPVS: constant, whatever the Services are.

IPVS takes packets for a virtual service at the end of input (priority 99), and those that the node
sends in output (priority -98). The rules come just before. They drop by source range, mark packets
to be masqueraded, and reject packets to a service address without a virtual service. IPVS then
rewrites the destination and sends the packet through output again. Postrouting changes the source.

Established connections of TCP are left alone. Packets of UDP and SCTP are not, because a flow must
not go on to a Service that has no endpoints.
"""

from __future__ import annotations

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.schema import MARK_MASK, MARK_SPACE, TABLE
from pyproxy.dataplane.nft.base_rules import REFUSE, BaseRules, TrafficOptions
from pyproxy.model.address import Family, Network


class Options(TrafficOptions, frozen=True):
    """The part of the configuration that the base rules and the virtual services depend on.

    `scheduler` is for the Services that name none. Virtual services whose addresses are in
    `exclude_networks` are another program's, unless the table lists them.
    """

    scheduler: str = "rr"
    exclude_networks: tuple[Network, ...] = ()


def base_rules(options: Options) -> BaseRules:
    """Return the base rules for these options."""
    return BaseRules(
        table=TABLE,
        title="around IPVS, by pyproxy",
        kinds=schema.BY_NAME,
        hooks=_HOOKS,
        chains=_chains(options),
    )


_HOOKS = {
    # Input: after filter (0), before IPVS (98, 99). Output: after conntrack (-200) and mangle
    # (-150), before nat (-100) and IPVS (-99, -98).
    "filter-input": "type filter hook input priority 90; policy accept;",
    "filter-output": "type filter hook output priority -105; policy accept;",
    "filter-postrouting": "type filter hook postrouting priority srcnat - 10; policy accept;",
    "nat-postrouting": "type nat hook postrouting priority srcnat; policy accept;",
}


def _chains(options: Options) -> dict[str, list[str]]:
    """Return the rules of each chain, each after the chains that it jumps to."""
    new_connections: list[str] = []
    services: list[str] = []
    for family in Family:
        new_connections.append(
            f"{schema.SOURCE_RANGE_FRONTENDS.lookup(family)} "
            f"{schema.SOURCES.lookup(family, negate=True)} drop"
        )
        new_connections += _marking(family, options)
        services += _internal_marks(family, options)
        services.append(f"{schema.DROPPED.lookup(family)} drop")
        services.append(f"{schema.NO_ENDPOINT_SERVICES.lookup(family)} goto refuse")
        # Such an address is the node's own, and load balancers may check the node there.
        services.append(f"{schema.HEALTH_CHECKS.lookup(family)} return")
        services.append(
            f"{schema.ADDRESSES.lookup(family)} "
            f"{schema.FRONTENDS.lookup(family, negate=True)} goto refuse"
        )
    return {
        "refuse": [*REFUSE],
        "new-connections": new_connections,
        "services": [
            "meta l4proto != { tcp, udp, sctp } return",
            "ct direction reply return",
            "ct state new jump new-connections",
            "ct state != new meta l4proto tcp return",
            *services,
        ],
        "filter-input": ["jump services"],
        "filter-output": ["jump services"],
        "clear-internal-mark": [
            # The internal mark replaced the masquerading bit, which the node's own packets need.
            f"ct state new fib saddr type local meta mark set {options.mark:#010x} return",
            "meta mark set 0",
        ],
        "filter-postrouting": [
            f"meta mark & {MARK_MASK:#010x} == {MARK_SPACE:#010x} goto clear-internal-mark"
        ],
        "nat-postrouting": _masquerading(options),
    }


def _marking(family: Family, options: Options) -> list[str]:
    set_mark = options.set_mark()
    to_cluster_ip = schema.CLUSTER_IPS.lookup(family)
    rules = [f"{schema.MASQUERADED.lookup(family)} {set_mark}"]
    if options.masquerade_all:
        rules.append(f"{to_cluster_ip} {set_mark}")
    elif elsewhere := options.from_pods(family, negate=True):
        rules.append(f"{to_cluster_ip} {elsewhere} {set_mark}")
    return rules


def _internal_marks(family: Family, options: Options) -> list[str]:
    pods = options.from_pods(family)
    kind = schema.INTERNAL_SERVICES
    chosen = f"meta mark set {kind.key_text(family)} map @{kind.of(family)}"
    # A look-up that finds nothing ends its rule, so only packets to a listed frontend return.
    return [
        *([f"{pods} {chosen} return"] if pods else []),
        f"fib saddr type local {chosen} return",
    ]


def _masquerading(options: Options) -> list[str]:
    bit, others = f"{options.mark:#010x}", f"{options.mark ^ 0xFFFFFFFF:#010x}"
    return [
        # A packet from the node to a service address has that address as its source, because the
        # address is local. A program on the node would reply to the service address, which is on
        # the node too, so the source becomes the endpoint's.
        *(
            f'oifname "lo" {_ip(family)} saddr @{schema.ADDRESSES.of(family)} '
            f"meta mark set meta mark & {others} snat {_ip(family)} to {_ip(family)} daddr"
            for family in Family
        ),
        f'oifname "lo" meta mark & {bit} != 0 meta mark set meta mark ^ {bit} return',
        f"meta mark & {bit} != 0 meta mark set meta mark ^ {bit} masquerade fully-random",
        *(
            f"{_ip(family)} saddr @{schema.ADDRESSES.of(family)} masquerade fully-random"
            for family in Family
        ),
        *(
            f"{schema.HAIRPIN.lookup(family)} fib saddr type != local masquerade fully-random"
            for family in Family
        ),
    ]


def _ip(family: Family) -> str:
    return "ip" if family is Family.IPV4 else "ip6"
