"""What a lookup in the table finds, as the kernel would find it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.dataplane.nftables.schema import SetKind
from pyproxy.dataplane.nftables.trace import Element
from pyproxy.dataplane.packets import Packet
from pyproxy.model.address import Address, Family, family_of
from pyproxy.netlink.elements import Shape, Value

Lookups = Mapping[str, Mapping[bytes, Value]]
"""The elements of sets, by the set's name: a Table, or the kernel's own, asked for one by one."""


class Machine(msgspec.Struct, frozen=True):
    """What decides over a packet: the rows that we fill, the options, and what packets taught.

    `learned` holds the affinity maps, `local` the addresses of the machine's interfaces.
    """

    table: Lookups
    options: Options
    local: frozenset[Address] = frozenset()
    learned: Lookups = {}

    def meet(self, kind: SetKind, family: Family, key: bytes) -> Element | None:
        """Find the element that a key is in; ranges are those of one field or of several."""
        name = kind.of(family)
        rows = (self.learned if kind.learned else self.table).get(name, {})
        if kind.shape is Shape.EXACT:
            found = rows.get(key)
            return None if found is None else Element(name, key, found)
        fields = [field.size(family) for field in kind.key]
        for bounds, value in rows.items():
            if _is_within(key, bounds, fields):
                return Element(name, bounds, value)
        return None

    def is_from_pod(self, packet: Packet) -> bool | None:
        """Tell whether the rules take a packet for a pod's; None where they do not ask."""
        if wanted := self.options.pod_interface:
            prefix = wanted.removesuffix("*")
            if prefix != wanted:
                return packet.interface.startswith(prefix)
            return packet.interface == wanted
        family = family_of(packet.source)
        if family in self.options.pod_families:
            return self.meet(schema.PODS, family, packet.source) is not None
        return None


def _is_within(key: bytes, bounds: bytes, fields: Iterable[int]) -> bool:
    # A range of several fields is a box, not a stretch of bytes.
    half, start = len(bounds) // 2, 0
    for size in fields:
        low, high = bounds[start : start + size], bounds[half + start : half + start + size]
        if not low <= key[start : start + size] <= high:
            return False
        start += size
    return True
