"""The marks of ports whose internal clients have another list of endpoints (policy Local).

Such a port has a virtual service by mark besides those by address, and a rule sets the mark.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import count

import msgspec

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.draining import Draining
from pyproxy.dataplane.ipvs.rows import PortKey, split_ports
from pyproxy.dataplane.ipvs.schema import Table
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import PortRouting, ServiceRouting, Use


class Marks(msgspec.Struct, frozen=True):
    """The number of each such port; no two have the same."""

    numbers: Mapping[PortKey, int]

    def next(
        self,
        before: Mapping[ObjectName, ServiceRouting],
        after: Mapping[ObjectName, ServiceRouting | None],
        draining: Draining,
    ) -> Marks:
        """Return the numbers after these Services have changed.

        A port keeps its number as long as it needs one. A number is not reused while connections of
        its last port drain.
        """
        had = {key for name in after if (old := before.get(name)) for key, _ in split_ports(old)}
        needed = [key for new in after.values() if new for key, _ in split_ports(new)]
        if had == set(needed):
            return self
        numbers = {key: number for key, number in self.numbers.items() if key not in had}
        numbers |= {key: self.numbers[key] for key in needed if key in had}
        taken = set(numbers.values()) | {
            schema.mark_number(virtual.mark) for virtual in draining.virtuals if virtual.mark
        }
        # A port that needs no number any more may have connections left.
        taken |= {self.numbers[key] for key in had if key in self.numbers}
        _number(numbers, needed, taken)
        return Marks(numbers)


def assign_marks(routings: Iterable[ServiceRouting], held: Table, known: Marks) -> Marks:
    """Return a number for every port that needs one: the kernel's, else the last commit's."""
    numbers: dict[PortKey, int] = {}
    needed: list[PortKey] = []
    given: set[int] = set()
    taken = {
        schema.mark_number(virtual.mark)
        for virtual in held.get(schema.VIRTUALS, {})
        if virtual.mark
    }
    # The kernel's number comes first, so that a restart changes no mark. Two ports may find the
    # same number, as when a frontend has moved: the first keeps it.
    for routing in routings:
        for key, port in split_ports(routing):
            needed.append(key)
            number = _held_number(port, held)
            number = known.numbers.get(key) if number is None else number
            if number is not None and number not in given:
                numbers[key] = number
                given.add(number)
    _number(numbers, needed, taken)
    return Marks(numbers)


def _held_number(port: PortRouting, held: Table) -> int | None:
    rows = held.get(schema.INTERNAL_SERVICES.of(port.family), {})
    for frontend in port.frontends:
        if frontend.use is Use.SPLIT:
            key = frontend_key(frontend.address, port.protocol, frontend.port)
            mark = int.from_bytes(rows.get(key, b""), sys.byteorder)
            if schema.is_our_mark(mark) and mark == schema.mark_of(
                schema.mark_number(mark), port.protocol
            ):
                return schema.mark_number(mark)
    return None


def _number(numbers: dict[PortKey, int], needed: Iterable[PortKey], taken: set[int]) -> None:
    free = (number for number in count() if number not in taken)
    for key in needed:
        if key not in numbers:
            numbers[key] = next(free)
