"""The expressions of a rule, taken apart: the reverse of `rules`, as far as anybody asks.

Facts: include/uapi/linux/netfilter/nf_tables.h. nft writes an interface's name as 16 bytes with
zeros behind it, and a prefix of one as its letters alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pyproxy.netlink.attributes import attribute_map, attributes, text

META_IIFNAME = 6

_NAME, _DATA = 1, 2
_LOOKUP_SET = 1
_META_KEY = 2
_CMP_DATA = 3
_BITWISE_XOR = 5
_VALUE = 1


class Expression(msgspec.Struct, frozen=True):
    """One expression by its kernel name, such as "lookup", with its attributes."""

    name: str
    fields: dict[int, bytes]


def read(packed: bytes) -> Iterator[Expression]:
    """Take a rule's packed expressions apart; what has no name is passed over."""
    for _, item in attributes(packed):
        parts = attribute_map(item)
        if _NAME in parts:
            fields = attribute_map(parts[_DATA]) if _DATA in parts else {}
            yield Expression(
                text(parts[_NAME]), {kind: bytes(value) for kind, value in fields.items()}
            )


def looked_up(packed: bytes) -> frozenset[str]:
    """Name the sets that a rule looks up."""
    return frozenset(
        text(memoryview(each.fields[_LOOKUP_SET]))
        for each in read(packed)
        if each.name == "lookup" and _LOOKUP_SET in each.fields
    )


def incoming_interface(packed: bytes) -> str:
    """Name the interface that a rule compares, with `*` for a prefix; empty where it has none."""
    asked = False
    for each in read(packed):
        if asked and each.name == "cmp":
            name = attribute_map(each.fields.get(_CMP_DATA, b"")).get(_VALUE, memoryview(b""))
            whole = bytes(name).endswith(b"\0")
            return text(name) + ("" if whole else "*")
        key = int.from_bytes(each.fields.get(_META_KEY, b""), "big")
        asked = each.name == "meta" and key == META_IIFNAME
    return ""


def bits_set(packed: bytes) -> bytes:
    """Give the value that a rule's first bitwise expression turns bits on with, empty for none."""
    for each in read(packed):
        if each.name == "bitwise":
            value = attribute_map(each.fields.get(_BITWISE_XOR, b"")).get(_VALUE, b"")
            return bytes(value)
    return b""
