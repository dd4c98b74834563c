"""Connections of each frontend and endpoint, read from the counters of their elements.

An element's counter starts at 0 when the element is added. A changed value is a new element.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from pyproxy.dataplane.connections import Counted, Totals, is_selected
from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.loaded_options import missing_table
from pyproxy.dataplane.nft.schema import Rows, SetKind
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import StaleStateError, UsageError
from pyproxy.model.address import Backend, Family, backend_text
from pyproxy.netlink import element_counters, elements, nftables
from pyproxy.netlink.elements import Shape, Tag
from pyproxy.netlink.nfnetlink import Nfnetlink

_INDEX = struct.Struct("=I")
_Slot = tuple[bytes, int]
"""An element's data, and the packets that it has counted."""

_FRONTENDS = {
    schema.SERVICES: schema.ENDPOINTS,
    schema.NODE_PORTS: schema.NODE_PORT_ENDPOINTS,
}
"""The map of frontends and that of their endpoints."""

_BASES = (0, chains.LOCAL_OFFSET)


class CounterReader:
    """Reads the counters of the network namespace that it is made in."""

    def __init__(self) -> None:
        self._netlink = Nfnetlink()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def require(self) -> None:
        """Raise UsageError if no element counts connections. Raises KernelError."""
        present = list(self._netlink.dump(nftables.get_sets(TABLE)))
        if not present:
            raise missing_table(TABLE, "nftables", "top")
        # One set is enough: all counted sets are declared in the same transaction.
        if schema.SERVICES.of(Family.IPV4) not in element_counters.read_counted_sets(present):
            raise UsageError(
                f"table inet {TABLE} does not count connections: start the agent with "
                "--endpoint-counters, which takes kernel memory for each endpoint and replaces the "
                "table once"
            )

    def services(self, wanted: str = "") -> Totals:
        """Read one total for each frontend of the Services that `wanted` names.

        `wanted` is empty for all, `namespace/` for those of a namespace, or `namespace/name`. Reads
        all frontends in any case. Raises KernelError.
        """
        by_element: dict[tuple[str, bytes], int] = {}
        owners: dict[tuple[str, bytes], Counted] = {}
        for family in Family:
            for kind in _FRONTENDS:
                name = kind.of(family)
                # Comments in the kernel name the Services, so this works without an agent.
                rows, totals = self._read(name)
                for key, value in rows.items():
                    service = value.comment if isinstance(value, Tag) else ""
                    if is_selected(service, wanted):
                        by_element[name, key] = totals.get(key, 0)
                        owners[name, key] = Counted(service)
        return Totals(by_element, owners)

    def endpoints(self, services: Totals, *, everything: bool) -> Totals:
        """Read one total for each endpoint of the frontends in `services`.

        With `everything` all endpoints are read in one dump, otherwise each by its key, which takes
        less for a few Services. Raises KernelError.
        """
        by_element: dict[tuple[str, bytes], int] = {}
        owners: dict[tuple[str, bytes], Counted] = {}
        for family in Family:
            for frontend_kind, kind in _FRONTENDS.items():
                name, frontends = kind.of(family), frontend_kind.of(family)
                held = self._all(kind, family) if everything else None
                for (set_name, frontend), owner in services.owners.items():
                    if set_name != frontends:
                        continue
                    for key, backend, total in self._slots(kind, family, frontend, held):
                        by_element[name, key] = total
                        owners[name, key] = Counted(owner.service, backend_text(backend))
        return Totals(by_element, owners)

    def _slots(
        self,
        kind: SetKind,
        family: Family,
        frontend: bytes,
        held: Mapping[bytes, _Slot] | None,
    ) -> Iterator[tuple[bytes, Backend, int]]:
        # Slots have no gaps, so the first empty one is the end.
        size = family.bits // 8 + 2
        for base in _BASES:
            for index in count(base):
                key = frontend + _INDEX.pack(index)
                found = self._one(kind, family, key) if held is None else held.get(key)
                if found is None:
                    break
                yield key, Backend(found[0][:size]), found[1]

    def _all(self, kind: SetKind, family: Family) -> dict[bytes, _Slot]:
        name = kind.of(family)
        replies = self._netlink.dump(elements.get_elements(TABLE, name))
        return {key: (data, total) for key, data, total in self._counted(kind, replies, family)}

    def _one(self, kind: SetKind, family: Family, key: bytes) -> _Slot | None:
        name = kind.of(family)
        try:
            reply = self._netlink.get(elements.get_element(TABLE, name, key))
        except StaleStateError:
            return None
        return next(
            ((data, total) for _, data, total in self._counted(kind, [reply], family)), None
        )

    def _counted(
        self, kind: SetKind, replies: Iterable[memoryview], family: Family
    ) -> Iterator[tuple[bytes, bytes, int]]:
        data_size = sum(field.size(family) for field in nft.BACKEND)
        return element_counters.read_counted_elements(replies, kind.key_size(family), data_size)

    def _read(self, name: str) -> tuple[Rows, dict[bytes, int]]:
        # A list, because it is read twice.
        replies = list(self._netlink.dump(elements.get_elements(TABLE, name)))
        return elements.read_elements(replies, Shape.EXACT), element_counters.read_packet_counts(
            replies
        )
