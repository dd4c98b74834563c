"""Packet counters of set elements.

Facts: include/uapi/linux/netfilter/nf_tables.h. In a set that was created with an expression, such
as a counter, every element has an instance of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cache

from pyproxy.netlink.attributes import attribute_map, attributes, text
from pyproxy.netlink.elements import ELEM_DATA, ELEM_KEY, LIST_ELEMENTS, element_value
from pyproxy.netlink.nftables import NOTHING

_SET_NAME = 2
# NFTA_SET_EXPR, or NFTA_SET_EXPRESSIONS if the elements have several.
_SET_EXPRESSIONS = (17, 18)
_ELEM_EXPRESSION = 7
_EXPRESSION_DATA, _COUNTER_PACKETS = 2, 2


def read_counted_sets(replies: Iterable[memoryview]) -> set[str]:
    """Read the replies to `get_sets`: the sets whose elements have an expression."""
    found = (attribute_map(reply) for reply in replies)
    return {
        text(each[_SET_NAME])
        for each in found
        if _SET_NAME in each and not each.keys().isdisjoint(_SET_EXPRESSIONS)
    }


def read_packet_counts(replies: Iterable[memoryview]) -> dict[bytes, int]:
    """Read the replies to `get_elements`: the packets that each element's counter counted.

    Elements without a counter are skipped.
    """
    return {
        key: packets
        for reply in replies
        for kind, items in attributes(reply)
        if kind == LIST_ELEMENTS
        for key, _, packets in _walk(items)
        if key
    }


def read_counted_elements(
    replies: Iterable[memoryview], key_size: int, data_size: int
) -> Iterator[tuple[bytes, bytes, int]]:
    """Read the replies to `get_elements` of a data map: key, data and packets of each element.

    All elements of such a map have one layout, so a piece is unpacked at once, at a tenth of the
    cost of reading each element. The elements of any other piece are read one by one.
    """
    layout = _layout(key_size, data_size)
    for reply in replies:
        for kind, items in attributes(reply):
            if kind == LIST_ELEMENTS:
                yield from _unpack_uniform(items, layout) or _walk(items)


@cache
def _layout(key_size: int, data_size: int) -> struct.Struct:
    # Headers alternate with values: the key, the data, the counter's bytes and its packets.
    # 24 bytes are four headers and the name "counter". On processors without unaligned access the
    # kernel may pad before a 64-bit number; those elements are read one by one.
    return struct.Struct(f">12s{key_size}s8s{data_size}s24s8x4sQ")


def _unpack_uniform(
    items: memoryview, layout: struct.Struct
) -> list[tuple[bytes, bytes, int]] | None:
    if len(items) % layout.size:
        return None
    fields = list(layout.iter_unpack(items))
    if len({(each[0], each[2], each[4], each[5]) for each in fields}) != 1:
        return None
    found = [(each[1], each[3], each[6]) for each in fields]
    # The headers equal one another; reading one element shows whether they are the expected ones.
    return found if list(_walk(items[: layout.size])) == found[:1] else None


def _walk(items: memoryview) -> Iterator[tuple[bytes, bytes, int]]:
    for _, item in attributes(items):
        fields = attribute_map(item)
        expression = attribute_map(fields.get(_ELEM_EXPRESSION, NOTHING))
        counter = attribute_map(expression.get(_EXPRESSION_DATA, NOTHING))
        if _COUNTER_PACKETS in counter:
            yield (
                element_value(fields.get(ELEM_KEY, NOTHING)),
                element_value(fields.get(ELEM_DATA, NOTHING)),
                int.from_bytes(counter[_COUNTER_PACKETS], "big"),
            )
