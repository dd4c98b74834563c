"""Sets and maps of nf_tables, and the elements that a packet may be in.

Facts: include/uapi/linux/netfilter/nf_tables.h. The kernel looks up a key that is known as a whole.
Elements are compared here with a key that is known in part, such as one with any client's address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as Interface

import msgspec

from pyproxy.hostnet.firewall.bits import Bits, is_between, is_equal
from pyproxy.hostnet.firewall.guards import Fields
from pyproxy.hostnet.firewall.hook_packet import HookPacket


class SetShape(msgspec.Struct, frozen=True):
    """A set's flags, and the lengths of its key and of the key's fields in bytes.

    `size` is the most elements that it takes, 0 if that is not limited.
    """

    flags: int
    length: int
    fields: tuple[int, ...]
    size: int = 0

    @property
    def is_interval(self) -> bool:
        """Whether its elements may be ranges."""
        return bool(self.flags & 4)

    @property
    def has_timeouts(self) -> bool:
        """Whether its elements may have a timeout."""
        return bool(self.flags & 0x10)

    @property
    def has_expressions(self) -> bool:
        """Whether its elements may have limits of their own."""
        return bool(self.flags & 0x100)


class SetElement(msgspec.Struct, frozen=True):
    """An element. A range of one field is two elements, the second of which is an end marker.

    `end` is the last key of a range of several fields, empty otherwise. `data` is packed.
    """

    key: bytes
    end: bytes
    is_end_marker: bool
    is_catchall: bool
    data: bytes


class Sets(Interface):
    """The sets of a table. Methods may block, and raise KernelError."""

    def fields(self, packet: HookPacket) -> Fields:
        """Return the fields of a packet, the same object for the same packet."""
        ...

    def set_shape(self, name: str) -> SetShape:
        """Return a set's shape."""
        ...

    def element(self, set_name: str, key: bytes) -> SetElement | None:
        """Return the element that a key is in."""
        ...

    def elements(self, set_name: str) -> Sequence[SetElement] | None:
        """Return all elements, None if there are too many."""
        ...


def candidates(elements: Sequence[SetElement], shape: SetShape, key: Bits) -> list[SetElement]:
    """Return the elements that a key with unknown bits may be in."""
    if shape.is_interval and len(shape.fields) == 1:
        return _range_candidates(elements, shape, key)
    return [
        each
        for each in elements
        if each.is_catchall or _may_be_in(each.key, each.end or each.key, shape, key)
    ]


def _may_be_in(low: bytes, high: bytes, shape: SetShape, key: Bits) -> bool:
    offset = 0
    for size in shape.fields:
        part = key.part(offset, size)
        first, last = (int.from_bytes(each[offset : offset + size], "big") for each in (low, high))
        if (is_equal(part, first) if first == last else is_between(part, first, last)) is False:
            return False
        offset += (size + 3) & ~3
    return True


def _range_candidates(
    elements: Sequence[SetElement], shape: SetShape, key: Bits
) -> list[SetElement]:
    found = [each for each in elements if each.is_catchall]
    bounds = sorted(
        (each for each in elements if not each.is_catchall),
        key=lambda each: (each.key, not each.is_end_marker),
    )
    start: SetElement | None = None
    for each in [*bounds, None]:
        if start is not None:
            last = int.from_bytes(each.key, "big") - 1 if each else (1 << 8 * shape.length) - 1
            if is_between(key, int.from_bytes(start.key, "big"), last) is not False:
                found.append(start)
        start = each if each and not each.is_end_marker else None
    return found
