"""Lookups as the kernel makes them: which element of a set a key is in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pyproxy.dataplane.nft import listing
from pyproxy.dataplane.nft.schema import SetKind
from pyproxy.model.address import Family
from pyproxy.netlink.elements import Shape, Value

Lookups = Mapping[str, Mapping[bytes, Value]]
"""The elements of sets, by the set's name: a Table, or `kernel_rows`."""


class Element(msgspec.Struct, frozen=True):
    """An element of a set or map that a packet matched."""

    kind: SetKind
    family: Family
    key: bytes
    value: Value = b""

    @property
    def set_name(self) -> str:
        """The set's name in the kernel."""
        return self.kind.of(self.family)

    def __str__(self) -> str:
        text = listing.element_text(self.kind, self.family, self.key, self.value)
        return f"{self.set_name} {{ {text} }}"


def find_element(table: Lookups, kind: SetKind, family: Family, key: bytes) -> Element | None:
    """Return the element that a key is in, where ranges have one field or several."""
    rows = table.get(kind.of(family), {})
    if kind.shape is Shape.EXACT:
        found = rows.get(key)
        return None if found is None else Element(kind, family, key, found)
    fields = [field.size(family) for field in kind.key]
    for bounds, value in rows.items():
        if _is_within(key, bounds, fields):
            return Element(kind, family, bounds, value)
    return None


def _is_within(key: bytes, bounds: bytes, fields: Iterable[int]) -> bool:
    # A range of several fields is a box: each field has bounds of its own.
    half, start = len(bounds) // 2, 0
    for size in fields:
        low, high = bounds[start : start + size], bounds[half + start : half + start + size]
        # Fields of ranges are in network order, so comparing bytes compares numbers.
        if not low <= key[start : start + size] <= high:
            return False
        start += size
    return True
