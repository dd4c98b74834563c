"""Whether a rule in the kernel is the one that was sent, expression by expression.

Facts: `nft_dump_register` in net/netfilter/nf_tables_api.c, and the dump function of each
expression. A dump names every fourth register by its 16-byte name, and has fields that the kernel
fills in. Those are zero, but for the ends of nat's ranges and its flags.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from pyproxy.netlink.attributes import attribute_map, attributes, text
from pyproxy.netlink.rules import REGISTER, Expression, read_expressions

_NUMBER = struct.Struct(">I")

_REGISTERS: Mapping[str, frozenset[int]] = {
    "bitwise": frozenset((1, 2)),
    "byteorder": frozenset((1, 2)),
    "cmp": frozenset((1,)),
    "ct": frozenset((1, 4)),
    "dynset": frozenset((4, 5)),
    "immediate": frozenset((1,)),
    "lookup": frozenset((2, 3)),
    "meta": frozenset((1, 3)),
    "nat": frozenset((3, 4, 5, 6)),
    "numgen": frozenset((1,)),
    "payload": frozenset((1, 5)),
}
"""The fields of each expression that are registers."""

_NAT_ENDS = {4: 3, 6: 5}
"""The fields of nat that end a range, and those that begin it: the same register by default."""

_NAT_FLAGS = 7
# NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED, since the rule has registers for both.
_NAT_GIVEN = _NUMBER.pack(3)
_VERDICT = ("immediate", 2)
_INNER = {"dynset": 7}
"""The fields that hold an expression for each element."""


def is_same_rule(sent: bytes, held: bytes) -> bool:
    """Return whether `held`, as a dump has it, is the rule of the packed expressions `sent`."""
    ours, theirs = list(read_expressions(sent)), list(read_expressions(held))
    return len(ours) == len(theirs) and all(map(_is_same, ours, theirs))


def _is_same(sent: Expression, held: Expression) -> bool:
    if sent.name != held.name:
        return False
    if sent.name == "counter":
        # Its fields are what it has counted.
        return True
    ours, theirs = _fields(sent), _fields(held)
    inner = _INNER.get(sent.name, -1)
    if any(theirs.get(kind) != value for kind, value in ours.items() if kind != inner):
        return False
    if inner in sent.fields and not (
        inner in held.fields and _is_same(_inner(sent.fields[inner]), _inner(held.fields[inner]))
    ):
        return False
    return all(
        _is_default(held.name, kind, value, theirs)
        for kind, value in theirs.items()
        if kind not in ours
    )


def _is_default(name: str, kind: int, value: object, fields: Mapping[int, object]) -> bool:
    """Return whether a field that was not sent has the value that the kernel gives it."""
    if name == "nat" and kind in _NAT_ENDS:
        return value == fields.get(_NAT_ENDS[kind])
    if name == "nat" and kind == _NAT_FLAGS:
        return value == _NAT_GIVEN
    return isinstance(value, bytes) and not any(value)


def _fields(expression: Expression) -> dict[int, object]:
    registers = _REGISTERS.get(expression.name, frozenset())
    return {
        kind: _register(value)
        if kind in registers
        else _verdict(value)
        if (expression.name, kind) == _VERDICT
        else value
        for kind, value in expression.fields.items()
    }


def _register(value: bytes) -> int:
    """Return a register's 4-byte name, also where it has the 16-byte one; the verdict's is 0."""
    (number,) = _NUMBER.unpack(value)
    return REGISTER + 4 * (number - 1) if 0 < number < REGISTER // 2 + 1 else int(number)


def _inner(value: bytes) -> Expression:
    parts = attribute_map(value)
    fields = attribute_map(parts.get(2, b""))
    return Expression(
        text(parts.get(1, memoryview(b""))), {kind: bytes(each) for kind, each in fields.items()}
    )


def _verdict(value: bytes) -> object:
    # The dump lacks the flag NESTED in the types of attributes. Kind 1 is a number.
    return tuple(
        (kind, bytes(data))
        if kind == 1
        else (kind, tuple((inner, bytes(each)) for inner, each in attributes(data)))
        for kind, data in attributes(value)
    )
