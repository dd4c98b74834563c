"""The first comparisons of a rule of nf_tables, decoded once and tested quickly.

Most rules of a long chain do not match a packet, and differ from it in their first fields. A guard
is a field that a rule loads and compares with a constant; a packet's fields are loaded once.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pyproxy.hostnet.firewall import metadata
from pyproxy.hostnet.firewall.bits import Bits
from pyproxy.hostnet.firewall.hook_packet import HookPacket
from pyproxy.netlink.attributes import attribute_map
from pyproxy.netlink.rules import Expression

_EQUAL, _NOT_EQUAL = 0, 1
_META, _PAYLOAD = 0, 1


class Field(msgspec.Struct, frozen=True):
    """A field that rules load: a meta key, or bytes of the network or transport header."""

    kind: int
    key: int
    offset: int = 0
    size: int = 0


class Guard(msgspec.Struct, frozen=True):
    """A comparison of the first bytes of a field; the rule does not match where it is false."""

    field: Field
    size: int
    value: int
    negated: bool


class Fields:
    """The fields of one packet, each loaded when a rule tests it first."""

    def __init__(self, packet: HookPacket) -> None:
        self.packet = packet
        self._values: dict[Field, Bits | None] = {}

    def refutes(self, guards: Iterable[Guard]) -> bool:
        """Return whether a guard is false, so that the rule certainly does not match."""
        for guard in guards:
            field = guard.field
            if field not in self._values:
                self._values[field] = self._load(field)
            value = self._values[field]
            if value is None:
                return True
            if value.size > guard.size:
                value = value.part(0, guard.size)
            if value.size < guard.size:
                return False
            differs = (value.value ^ guard.value) & value.known
            if differs and not guard.negated:
                return True
            if guard.negated and not differs and value.complete:
                return True
        return False

    def _load(self, field: Field) -> Bits | None:
        if field.kind == _META:
            return metadata.meta(field.key, self.packet)
        if field.key == 1:
            return self.packet.network_header(field.offset, field.size)
        return self.packet.transport_header(field.offset, field.size)


def guards_of(expressions: Iterable[Expression]) -> tuple[Guard, ...]:
    """Return the guards at the start of a rule: loads, each followed by its comparison."""
    found: list[Guard] = []
    loaded: tuple[Field, bytes] | None = None
    for each in expressions:
        if loaded is None:
            field = _field(each)
            if field is None:
                break
            loaded = (field, each.fields.get(1, b""))
            continue
        field, register = loaded
        operator = int.from_bytes(each.fields.get(2, b""), "big")
        same = each.name == "cmp" and each.fields.get(1) == register
        if not same or operator not in (_EQUAL, _NOT_EQUAL):
            break
        data = bytes(attribute_map(each.fields.get(3, b"")).get(1, b""))
        found.append(Guard(field, len(data), int.from_bytes(data, "big"), operator == _NOT_EQUAL))
        loaded = None
    return tuple(found)


def _field(expression: Expression) -> Field | None:
    numbers = {kind: int.from_bytes(value, "big") for kind, value in expression.fields.items()}
    if expression.name == "meta" and 1 in numbers:
        return Field(_META, numbers.get(2, 0))
    if expression.name == "payload" and 1 in numbers and numbers.get(2) in (1, 2):
        return Field(_PAYLOAD, numbers[2], numbers.get(3, 0), numbers.get(4, 0))
    return None
