"""The constant part of the table, as text for nft.

No chain and no rule stands for a Service or an endpoint, so the text depends on the agent's
configuration alone. The chains that pick an endpoint are in `chains`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import msgspec

from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.schema import TABLE, Field, SetKind
from pyproxy.model.address import Family, Mark
from pyproxy.netlink.elements import Shape

MARKER = "ruleset-"
_MARKED = re.compile(f"{MARKER}[0-9a-f]+")
_SHIELD = 'iifname != "lo" ip daddr 127.0.0.0/8 ct state new,invalid,untracked drop'


class Options(msgspec.Struct, frozen=True):
    """What the configuration says about the fixed rules.

    Traffic is from a pod when it comes in by `pod_interface` (a name, or a prefix ending in `*`),
    or else when its source is in the set of pod networks, for the families in `pod_families`. A
    family that has neither is never masqueraded for coming from elsewhere.

    With `endpoint_counters` the elements of frontends and of endpoints count connections.

    `shield_loopback` drops what others send to 127.0.0.0/8, as the kernel does by itself until it
    is told to let such addresses through for node ports on them.
    """

    mark: Mark = Mark(1 << 14)
    masquerade_all: bool = False
    pod_interface: str = ""
    pod_families: frozenset[Family] = frozenset()
    shield_loopback: bool = False
    endpoint_counters: bool = False


def marker(options: Options) -> str:
    """Name the empty chain whose presence says that fixed and other chains are this version's."""
    counted = "".join(kind.name for kind in schema.COUNTED) * options.endpoint_counters
    text = _body(options) + chains.fingerprint() + counted
    return MARKER + hashlib.sha256(text.encode()).hexdigest()[:12]


def ruleset(options: Options, present: Iterable[str]) -> str:
    """Write the commands that make the fixed rules so, in one transaction, and keep all elements.

    `present` are the chains that the table has now.
    """
    wanted, counting = marker(options), options.endpoint_counters
    stale = [name for name in present if _MARKED.fullmatch(name) and name != wanted]
    names = [name for name, _ in _chains(options)]
    return "\n".join(
        [
            f"table inet {TABLE} {{",
            '\tcomment "Kubernetes Services, by pyproxy"',
            *(
                declaration(kind, family, counts=counting and kind in schema.COUNTED)
                for kind in schema.SETS
                for family in Family
            ),
            *(f"\tchain {name} {{ {hook} }}" for name, hook in _hooks().items()),
            *(f"\tchain {name} {{ }}" for name in names if name not in _hooks()),
            f"\tchain {wanted} {{ }}",
            "}",
            *(f"flush chain inet {TABLE} {name}" for name in names),
            *(f"delete chain inet {TABLE} {name}" for name in stale),
            _body(options),
        ]
    )


def chain_names() -> frozenset[str]:
    """Name the chains of the fixed part; they are the same whatever the options."""
    return frozenset(name for name, _ in _chains(Options()))


def _hooks() -> dict[str, str]:
    return {
        "filter-prerouting": "type filter hook prerouting priority dstnat - 10; policy accept;",
        "filter-output-before": "type filter hook output priority -110; policy accept;",
        "nat-prerouting": "type nat hook prerouting priority dstnat; policy accept;",
        "nat-output": "type nat hook output priority -100; policy accept;",
        "filter-input": "type filter hook input priority filter; policy accept;",
        "filter-forward": "type filter hook forward priority filter; policy accept;",
        "filter-output": "type filter hook output priority filter; policy accept;",
        "nat-postrouting": "type nat hook postrouting priority srcnat; policy accept;",
    }


def _chains(options: Options) -> list[tuple[str, list[str]]]:
    new = "ct state new jump"
    shield = [_SHIELD] if options.shield_loopback else []
    return [
        ("filter-prerouting", [*shield, f"{new} source-ranges"]),
        ("filter-output-before", [f"{new} source-ranges"]),
        ("nat-prerouting", ["jump services"]),
        ("nat-output", ["jump services"]),
        ("filter-input", [f"{new} no-endpoints"]),
        ("filter-forward", [f"{new} no-endpoints", f"{new} no-such-port"]),
        ("filter-output", [f"{new} no-endpoints", f"{new} no-such-port"]),
        ("nat-postrouting", ["jump masquerading"]),
        ("services", [rule for family in Family for rule in _services(family, options)]),
        *((f"split{family.value}", _split(family, options)) for family in Family),
        ("source-ranges", [_guard(family) for family in Family]),
        (
            "no-endpoints",
            [f"{_lookup(schema.NO_ENDPOINT_SERVICES, f)} goto refuse" for f in Family],
        ),
        ("no-such-port", [f"{_lookup(schema.CLUSTER_IPS, f)} goto refuse" for f in Family]),
        ("refuse", ["meta l4proto tcp reject with tcp reset", "reject"]),
        (chains.MARKING, [_set_mark(options)]),
        ("masquerading", _masquerading(options)),
    ]


def _services(family: Family, options: Options) -> list[str]:
    rules = []
    to_cluster_ip = _lookup(schema.CLUSTER_IPS, family)
    if options.masquerade_all:
        rules.append(f"{to_cluster_ip} {_set_mark(options)}")
    elif elsewhere := _from_pods(family, options, negate=True):
        rules.append(f"{to_cluster_ip} {elsewhere} {_set_mark(options)}")
    return [*rules, _lookup(schema.SERVICES, family)]


def _split(family: Family, options: Options) -> list[str]:
    insiders = _lookup(schema.INTERNAL_SERVICES, family)
    pods = _from_pods(family, options, negate=False)
    return [
        *([f"{pods} {insiders}"] if pods else []),
        f"fib saddr type local {_set_mark(options)} {insiders}",
        _lookup(schema.EXTERNAL_SERVICES, family),
    ]


def _guard(family: Family) -> str:
    guarded = _lookup(schema.SOURCE_RANGE_FRONTENDS, family)
    return f"{guarded} {_lookup(schema.SOURCES, family, negate=True)} drop"


def _masquerading(options: Options) -> list[str]:
    bit = f"{options.mark:#010x}"
    return [
        f"meta mark & {bit} != 0 meta mark set meta mark ^ {bit} masquerade fully-random",
        *(
            f"ct status dnat {_lookup(schema.HAIRPIN, family)} masquerade fully-random"
            for family in Family
        ),
    ]


def _from_pods(family: Family, options: Options, *, negate: bool) -> str:
    if options.pod_interface:
        return f'iifname {"!= " * negate}"{options.pod_interface}"'
    if family in options.pod_families:
        return _lookup(schema.PODS, family, negate=negate)
    return ""


def _set_mark(options: Options) -> str:
    return f"meta mark set meta mark | {options.mark:#010x}"


def _lookup(kind: SetKind, family: Family, *, negate: bool = False) -> str:
    verdicts = "vmap " if kind.data == (Field.VERDICT,) else ""
    return f"{kind.key_text(family)} {'!= ' * negate}{verdicts}@{kind.of(family)}"


def declaration(kind: SetKind, family: Family, *, counts: bool = False) -> str:
    """Declare one set or map in a table's text; with `counts` its elements count packets."""
    data = kind.data_text(family)
    word, typeof = ("map", f"{kind.key_text(family)} : {data}") if data else ("set", "")
    flags = "" if kind.shape is Shape.EXACT else " flags interval;"
    if kind.learned:
        flags = f" size {kind.learned}; flags dynamic,timeout;"
    if counts:
        flags += " counter;"
    return (
        f"\t{word} {kind.of(family)} {{ typeof {typeof or kind.key_text(family)};{flags} "
        f'comment "{kind.about}"; }}'
    )


def _body(options: Options) -> str:
    return _table(_chains(options))


def _table(parts: Iterable[tuple[str, list[str]]]) -> str:
    lines = [f"table inet {TABLE} {{"]
    for name, rules in parts:
        lines += [f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}"]
    return "\n".join([*lines, "}"])
