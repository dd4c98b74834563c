"""How many connections each frontend and each endpoint has had, read from the kernel's counters.

An element's counter begins at 0 when the element is made, also when only its value changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from pyproxy.dataplane.connections import Counted, Totals, is_selected
from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.schema import Rows
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

_BASES = (0, chains.LOCAL_OFFSET)


class CounterReader:
    """Reads the counters of the network namespace that it is made in."""

    def __init__(self) -> None:
        self._netlink = Nfnetlink()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def require(self) -> None:
        """Raise UsageError where nothing counts; KernelError."""
        present = list(self._netlink.dump(nftables.get_sets(TABLE)))
        if not present:
            raise UsageError(
                f"the kernel holds no table inet {TABLE}: top reads what pyproxy counts in the "
                "mode nftables; run it on a node where that serves, in the host's network"
            )
        if schema.SERVICES.of(Family.IPV4) not in element_counters.read_counted_sets(present):
            raise UsageError(
                "nothing counts connections here: start the agent with --endpoint-counters, which "
                "costs kernel memory for each endpoint and replaces the table once"
            )

    def services(self, wanted: str = "") -> Totals:
        """Read one total for each frontend of the Services that `wanted` names.

        `wanted` is empty for all, `namespace/` for a namespace's, or `namespace/name`. Costs a
        reading of all frontends. Raises KernelError.
        """
        by_element: dict[tuple[str, bytes], int] = {}
        owners: dict[tuple[str, bytes], Counted] = {}
        for family in Family:
            name = schema.SERVICES.of(family)
            rows, totals = self._read(name)
            for key, value in rows.items():
                service = value.comment if isinstance(value, Tag) else ""
                if is_selected(service, wanted):
                    by_element[name, key] = totals.get(key, 0)
                    owners[name, key] = Counted(service)
        return Totals(by_element, owners)

    def endpoints(self, services: Totals, *, everything: bool) -> Totals:
        """Read one total for each endpoint of the frontends that `services` has.

        With `everything` all endpoints are read at once, else one by one, which costs less where
        those wanted are few. Raises KernelError.
        """
        by_element: dict[tuple[str, bytes], int] = {}
        owners: dict[tuple[str, bytes], Counted] = {}
        for family in Family:
            name, frontends = schema.ENDPOINTS.of(family), schema.SERVICES.of(family)
            held = self._all(family) if everything else None
            for (set_name, frontend), owner in services.owners.items():
                if set_name != frontends:
                    continue
                for key, backend, total in self._slots(family, frontend, held):
                    by_element[name, key] = total
                    owners[name, key] = Counted(owner.service, backend_text(backend))
        return Totals(by_element, owners)

    def _slots(
        self, family: Family, frontend: bytes, held: Mapping[bytes, _Slot] | None
    ) -> Iterator[tuple[bytes, Backend, int]]:
        # Slots have no gaps.
        size = family.bits // 8 + 2
        for base in _BASES:
            for index in count(base):
                key = frontend + _INDEX.pack(index)
                found = self._one(family, key) if held is None else held.get(key)
                if found is None:
                    break
                yield key, Backend(found[0][:size]), found[1]

    def _all(self, family: Family) -> dict[bytes, _Slot]:
        name = schema.ENDPOINTS.of(family)
        routings = self._netlink.dump(elements.get_elements(TABLE, name))
        return {key: (data, total) for key, data, total in self._counted(routings, family)}

    def _one(self, family: Family, key: bytes) -> _Slot | None:
        name = schema.ENDPOINTS.of(family)
        try:
            routing = self._netlink.get(elements.get_element(TABLE, name, key))
        except StaleStateError:
            return None
        return next(((data, total) for _, data, total in self._counted([routing], family)), None)

    def _counted(
        self, routings: Iterable[memoryview], family: Family
    ) -> Iterator[tuple[bytes, bytes, int]]:
        data_size = sum(field.size(family) for field in nft.BACKEND)
        return element_counters.read_counted_elements(
            routings, schema.ENDPOINTS.key_size(family), data_size
        )

    def _read(self, name: str) -> tuple[Rows, dict[bytes, int]]:
        routings = list(self._netlink.dump(elements.get_elements(TABLE, name)))
        return elements.read_elements(routings, Shape.EXACT), element_counters.read_packet_counts(
            routings
        )
