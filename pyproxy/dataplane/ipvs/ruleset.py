"""The rules around IPVS, as text for nft: constant, whatever the Services are.

IPVS takes a packet for a virtual service at the end of input, and what this machine itself sends
in output, right after the translation of others. The rules come just before: they let in by source
range, mark what must be masqueraded, and refuse what no virtual service is for. IPVS then rewrites
the destination and sends the packet through output once more, and postrouting sees to the source.

Connections that are under way are left alone, but for UDP and SCTP, whose packets must not go on
to a Service that refuses.
"""

from __future__ import annotations

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.schema import MARK_MASK, MARK_SPACE, TABLE
from pyproxy.dataplane.nft.base_rules import BaseRules, TrafficOptions
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
    "filter-input": "type filter hook input priority 90; policy accept;",
    "filter-output": "type filter hook output priority -105; policy accept;",
    "filter-postrouting": "type filter hook postrouting priority srcnat - 10; policy accept;",
    "nat-postrouting": "type nat hook postrouting priority srcnat; policy accept;",
}


def _chains(options: Options) -> dict[str, list[str]]:
    """Give the rules of each chain, each after the chains that it jumps to."""
    newcomers: list[str] = []
    services: list[str] = []
    for family in Family:
        newcomers.append(
            f"{schema.SOURCE_RANGE_FRONTENDS.lookup(family)} "
            f"{schema.SOURCES.lookup(family, negate=True)} drop"
        )
        newcomers += _marking(family, options)
        services += _internal_marks(family, options)
        services.append(f"{schema.DROPPED.lookup(family)} drop")
        services.append(f"{schema.NO_ENDPOINT_SERVICES.lookup(family)} goto refuse")
        services.append(
            f"{schema.ADDRESSES.lookup(family)} "
            f"{schema.FRONTENDS.lookup(family, negate=True)} goto refuse"
        )
    return {
        "refuse": ["meta l4proto tcp reject with tcp reset", "reject"],
        "newcomers": newcomers,
        "services": [
            "meta l4proto != { tcp, udp, sctp } return",
            "ct direction reply return",
            "ct state new jump newcomers",
            "ct state != new meta l4proto tcp return",
            *services,
        ],
        "filter-input": ["jump services"],
        "filter-output": ["jump services"],
        "clear-internal-mark": [
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
    return [
        *([f"{pods} {chosen} return"] if pods else []),
        f"fib saddr type local {chosen} return",
    ]


def _masquerading(options: Options) -> list[str]:
    bit, others = f"{options.mark:#010x}", f"{options.mark ^ 0xFFFFFFFF:#010x}"
    return [
        # What the node sends to a service address has that very address as its source. A program
        # of the node itself would send its answer to where it came from, from there as well.
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
