"""The chains that pick an endpoint, made when a frontend first needs one of its class.

A frontend's verdict names a chain by the *class* of its number of endpoints, the power of two that
they fit in. The chain picks a random slot, again when it meets an empty one; when all its tries
missed it picks among the lower half of the slots, which are always full. So an endpoint that comes
or goes within a class is one element of one map, and no verdict changes. That matters: a changed
verdict makes the kernel walk all verdict maps in search of loops.

They are sent as netlink and not as text, because nft 1.0.6 cannot add a rule that looks an address
up in a map which is in the kernel already (it lists them, and loads its listing again).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import Family, Mark
from pyproxy.netlink import rules
from pyproxy.netlink.nfnetlink import Message

TRIES = 8
"""Random picks before the lower half. More than half of a class's slots are full, so endpoints of
the lower half get less than 2**-8 more than their share."""

LOCAL_OFFSET = 1 << 24
"""Where the numbers of a frontend's local endpoints begin, above those of the whole cluster."""

CLUSTER, LOCAL = "cluster", "local"
_MASQUERADED = "masq-"

_NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}
_DADDR_OFFSET = {Family.IPV4: 16, Family.IPV6: 24}
_FIRST = rules.REGISTER


def endpoint_class(count: int) -> int:
    """Give the power of two that `count` endpoints fit in; `count` is at least 1."""
    return 1 << (count - 1).bit_length()


def target(which: str, family: Family, count: int, *, masquerade: bool) -> str:
    """Name the chain that picks one of `count` endpoints, of CLUSTER or of LOCAL."""
    return f"{_MASQUERADED * masquerade}{which}{family.value}-{endpoint_class(count)}"


def is_pick(name: str) -> bool:
    """Tell whether a chain is one of those that `target` names."""
    return name.removeprefix(_MASQUERADED).startswith((CLUSTER, LOCAL))


def with_dependencies(names: Iterable[str]) -> set[str]:
    """Add the chains that these go to."""
    return {each for name in names for each in (name, name.removeprefix(_MASQUERADED))}


def in_order(names: Iterable[str]) -> list[str]:
    """Sort chains so that each comes after those that it goes to."""
    return sorted(names, key=lambda name: (name.startswith(_MASQUERADED), name))


def chain(name: str, mark: Mark) -> Iterator[Message]:
    """Write a chain that `target` named, and its rules."""
    yield rules.new_chain(TABLE, name)
    plain = name.removeprefix(_MASQUERADED)
    if plain != name:
        yield rules.new_rule(
            TABLE,
            name,
            rules.load_meta(rules.META_MARK, _FIRST),
            rules.set_bits(_FIRST, mark),
            rules.set_meta(rules.META_MARK, _FIRST),
        )
        yield rules.new_rule(TABLE, name, rules.go_to(plain))
        return
    head, _, size = name.rpartition("-")
    which, family, count = head[:-1], Family(int(head[-1])), int(size)
    offset = LOCAL_OFFSET if which == LOCAL else 0
    # Of one or two endpoints no slot is ever empty.
    moduli = [count] if count <= 2 else [count] * TRIES + [count // 2]
    for modulus in moduli:
        yield rules.new_rule(TABLE, name, *_pick(family, modulus, offset))


def _pick(family: Family, modulus: int, offset: int) -> list[bytes]:
    words = family.bits // 32
    protocol, port, index = _FIRST + words, _FIRST + words + 1, _FIRST + words + 2
    return [
        rules.load_meta(rules.META_NFPROTO, _FIRST),
        rules.equal(_FIRST, bytes((_NFPROTO[family],))),
        rules.load_payload(rules.NETWORK_HEADER, _DADDR_OFFSET[family], words * 4, _FIRST),
        rules.load_meta(rules.META_L4PROTO, protocol),
        rules.load_payload(rules.TRANSPORT_HEADER, 2, 2, port),
        rules.random_number(modulus, offset, index),
        rules.look_up(schema.ENDPOINTS.of(family), _FIRST, _FIRST),
        rules.dnat(_NFPROTO[family], _FIRST, protocol),
    ]
