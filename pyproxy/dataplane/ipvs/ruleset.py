"""The rules around IPVS, as text for nft: constant, whatever the Services are.

IPVS takes a packet for a virtual service at the end of input, and what this machine itself sends
in output, right after the translation of others. The rules come just before: they let in by source
range, mark what must be masqueraded, and refuse what no virtual service is for. IPVS then rewrites
the destination and sends the packet through output once more, and postrouting sees to the source.

Connections that are under way are left alone, but for UDP and SCTP, whose packets must not go on
to a Service that refuses.
"""

from __future__ import annotations

import hashlib

import msgspec

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.schema import MARK_MASK, MARK_SPACE, TABLE
from pyproxy.dataplane.nftables.ruleset import declaration
from pyproxy.dataplane.nftables.schema import SetKind
from pyproxy.model.address import Family, Mark, Network


class Options(msgspec.Struct, frozen=True):
    """What the configuration says.

    Traffic is from a pod when it comes in by `pod_interface` (a name, or a prefix ending in `*`),
    or else when its source is in the set of pod networks, for the families in `pod_families`.
    `scheduler` is for the Services that name none. Virtual services whose addresses are in
    `exclude_networks` are another's, unless our own table says otherwise.
    """

    mark: Mark = Mark(1 << 14)
    masquerade_all: bool = False
    pod_interface: str = ""
    pod_families: frozenset[Family] = frozenset()
    scheduler: str = "rr"
    exclude_networks: tuple[Network, ...] = ()


def ruleset(options: Options) -> str:
    """Write the commands that make the rules so, in one transaction, and keep all elements."""
    chains = _chains(options)
    return "\n".join(
        [
            f"table inet {TABLE} {{",
            '\tcomment "around IPVS, by pyproxy"',
            *(declaration(kind, family) for kind in schema.SETS for family in Family),
            *(f"\tchain {name} {{ {_HOOKS.get(name, '')} }}" for name in chains),
            "}",
            *(f"flush chain inet {TABLE} {name}" for name in chains),
            f"table inet {TABLE} {{",
            *(_chain(name, rules) for name, rules in chains.items()),
            "}",
        ]
    )


def fingerprint(options: Options) -> str:
    """Digest the text, for a kernel that holds another version's."""
    return hashlib.sha256(ruleset(options).encode()).hexdigest()[:12]


def chain_names() -> frozenset[str]:
    """Name the chains; they are the same whatever the options."""
    return frozenset(_chains(Options()))


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
            f"{_lookup(schema.SOURCE_RANGE_FRONTENDS, family)} "
            f"{_lookup(schema.SOURCES, family, negate=True)} drop"
        )
        newcomers += _marking(family, options)
        services += _internal_marks(family, options)
        services.append(f"{_lookup(schema.DROPPED, family)} drop")
        services.append(f"{_lookup(schema.NO_ENDPOINT_SERVICES, family)} goto refuse")
        services.append(
            f"{_lookup(schema.ADDRESSES, family)} "
            f"{_lookup(schema.FRONTENDS, family, negate=True)} goto refuse"
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
    set_mark = f"meta mark set meta mark | {options.mark:#010x}"
    to_cluster_ip = _lookup(schema.CLUSTER_IPS, family)
    rules = [f"{_lookup(schema.MASQUERADED, family)} {set_mark}"]
    if options.masquerade_all:
        rules.append(f"{to_cluster_ip} {set_mark}")
    elif elsewhere := _from_pods(family, options, negate=True):
        rules.append(f"{to_cluster_ip} {elsewhere} {set_mark}")
    return rules


def _internal_marks(family: Family, options: Options) -> list[str]:
    pods = _from_pods(family, options, negate=False)
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
            f"{_lookup(schema.HAIRPIN, family)} fib saddr type != local masquerade fully-random"
            for family in Family
        ),
    ]


def _from_pods(family: Family, options: Options, *, negate: bool) -> str:
    if options.pod_interface:
        return f'iifname {"!= " * negate}"{options.pod_interface}"'
    if family in options.pod_families:
        return _lookup(schema.PODS, family, negate=negate)
    return ""


def _lookup(kind: SetKind, family: Family, *, negate: bool = False) -> str:
    return f"{kind.key_text(family)} {'!= ' * negate}@{kind.of(family)}"


def _ip(family: Family) -> str:
    return "ip" if family is Family.IPV4 else "ip6"


def _chain(name: str, rules: list[str]) -> str:
    return "\n".join([f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}"])
