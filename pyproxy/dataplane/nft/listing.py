"""Elements as nft spells them: for plans, `diff`, logs and traces."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pyproxy.dataplane.nft.schema import Field, Kinds, Rows, SetKind, Table
from pyproxy.model.address import Address, Family, Protocol, address_text
from pyproxy.netlink.elements import DROP, Shape, Tag, Value


def commands(verb: str, table: Table, table_name: str, kinds: Kinds) -> Iterator[str]:
    """Return one command per element, `add element inet pyproxy services4 { … }`."""
    for set_name, rows in table.items():
        for element in elements(set_name, rows, kinds):
            yield f"{verb} element inet {table_name} {set_name} {{ {element} }}"


def lines(table: Table, kinds: Kinds) -> Iterator[str]:
    """Return one line per element, `services4 { … }`."""
    for set_name, rows in table.items():
        for element in elements(set_name, rows, kinds):
            yield f"{set_name} {{ {element} }}"


def elements(set_name: str, rows: Rows, kinds: Kinds) -> Iterator[str]:
    """Return a set's elements as nft lists them."""
    kind, family = kinds[set_name]
    for key, value in rows.items():
        yield element_text(kind, family, key, value)


def element_text(kind: SetKind, family: Family, key: bytes, value: Value) -> str:
    """Return one element as nft lists it."""
    if kind.shape is Shape.EXACT:
        text = _fields(kind.key, key, family)
    else:
        half = len(key) // 2
        low, high = (_fields(kind.key, part, family) for part in (key[:half], key[half:]))
        # Only the last field of a concatenation is a range here: the others have equal bounds.
        text = low if low == high else f"{low}-{high.rsplit(' . ', 1)[-1]}"
    return text + _value(kind.data, value, family)


def _fields(fields: tuple[Field, ...], packed: bytes, family: Family) -> str:
    parts = []
    offset = 0
    for field in fields:
        size = field.size(family)
        parts.append(_field(field, packed[offset : offset + size]))
        offset += size
    return " . ".join(parts)


def _field(field: Field, packed: bytes) -> str:
    match field:
        case Field.SADDR | Field.DADDR:
            return address_text(Address(packed))
        case Field.PROTOCOL:
            number = packed[0]
            # Another program may have added an element of any protocol.
            known = number in Protocol.__members__.values()
            return Protocol(number).name.lower() if known else str(number)
        case Field.PORT:
            return str(int.from_bytes(packed[:2], "big"))
        case _:
            # Marks, and the numbers of numgen, are in host byte order.
            return str(struct.unpack("=I", packed)[0])


def _value(fields: tuple[Field, ...], value: Value, family: Family) -> str:
    if isinstance(value, bytes):
        return f" : {_fields(fields, value, family)}" if value else ""
    comment = f' comment "{value.comment}"' if value.comment else ""
    return f"{comment}{_verdict(value)}"


def _verdict(tag: Tag) -> str:
    if not tag.target:
        return ""
    return " : drop" if tag.target == DROP else f" : goto {tag.target}"
