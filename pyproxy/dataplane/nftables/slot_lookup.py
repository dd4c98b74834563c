"""Large maps of endpoints read by their keys: frontend and slot, as far as packets can reach them.

A dump takes a time that grows with the square of a map's size. The keys of the endpoints are
known once the maps of verdicts are: a frontend's chain draws among the slots of its class. Slots
have no gaps, so the first that is empty ends them. Elements beyond it, or of a frontend without a
verdict, serve no packet, or were written by another program; the size of the map shows them.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice

from pyproxy.dataplane.nft.readback import read_set
from pyproxy.dataplane.nft.schema import Rows, SetKind, Table
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import KernelError
from pyproxy.model.address import Family
from pyproxy.netlink.element_lookup import look_up
from pyproxy.netlink.elements import KEYS_LIMIT, Shape, Tag, get_elements, read_elements
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_sets, read_set_sizes

log = logging.getLogger(__name__)

LARGE = 120_000
"""Elements from which lookups take less time than a dump. Each takes 3 microseconds, while a dump
takes 0.3 to 0.4 s for 100,000 and 2 to 2.9 s for 250,000."""

_VERDICTS: Mapping[SetKind, Sequence[SetKind]] = {
    schema.ENDPOINTS: (schema.SERVICES, schema.INTERNAL_SERVICES, schema.EXTERNAL_SERVICES),
    schema.NODE_PORT_ENDPOINTS: (
        schema.NODE_PORTS,
        schema.INTERNAL_NODE_PORTS,
        schema.EXTERNAL_NODE_PORTS,
    ),
}

SLOTS: Mapping[str, Sequence[str]] = {
    kind.of(family): [each.of(family) for each in verdicts]
    for kind, verdicts in _VERDICTS.items()
    for family in Family
}
"""The maps of endpoints, and for each the maps whose verdicts lead to it."""

_AT_ONCE = 50_000
"""Keys that are asked for before the elements are counted."""

_INDEX = struct.Struct("=I")


class Slots:
    """The slots of a map that its frontends' verdicts lead to."""

    def __init__(self, verdicts: Iterable[Rows]) -> None:
        self._classes: dict[bytes, tuple[int, int]] = {}
        for rows in verdicts:
            for key, value in rows.items():
                found = chains.drawn_slots(value.target) if isinstance(value, Tag) else None
                if found is not None:
                    # A frontend has the slots of both kinds only if two maps have it.
                    first, size = found
                    self._classes[key + _INDEX.pack(first)] = first, size

    def estimate(self) -> int:
        """Return about how many elements the map has, with each class three quarters full."""
        return sum(_full(size) + size for _, size in self._classes.values()) // 2

    def read(self, netlink: Nfnetlink, name: str) -> Rows | None:
        """Read the map; None if elements are missing, so that it must be dumped. KernelError."""
        rows: Rows = {}
        full, asked = self._full_keys(), 0
        # A run ends at a missing element. Another program may have written verdicts to chains of
        # any size, so that the first missing element ends this.
        while keys := list(islice(full, _AT_ONCE)):
            rows |= look_up(netlink, TABLE, name, _pieces(keys))
            asked += len(keys)
            if len(rows) < asked:
                return None
        return rows | look_up(netlink, TABLE, name, self._further())

    def _full_keys(self) -> Iterator[bytes]:
        for key, (first, size) in self._classes.items():
            frontend = key[: -_INDEX.size]
            for index in _indices(first, _full(size)):
                yield frontend + index

    def _further(self) -> Iterator[Sequence[bytes]]:
        for key, (first, size) in self._classes.items():
            frontend, full = key[: -_INDEX.size], _full(size)
            if size > full:
                yield [frontend + index for index in _indices(first + full, size - full)]


def read_slots(
    netlink: Nfnetlink, name: str, verdicts: Callable[[], Iterable[Rows]], size: int | None
) -> Rows | None:
    """Read a map of endpoints by its keys; None if it must be dumped.

    `verdicts` reads the maps of `SLOTS`. `size` is the number of the map's elements, None if the
    kernel does not report it; elements that no packet can reach may then be left out.
    """
    if size is not None and size < LARGE:
        return None
    try:
        slots = Slots(verdicts())
        if size is None and slots.estimate() < LARGE:
            return None
        rows = slots.read(netlink, name)
    except KernelError as error:
        log.debug("cannot look up the elements of %s, reading it whole: %s", name, error)
        return None
    return rows if rows is not None and size in (None, len(rows)) else None


def find_unreachable(netlink: Nfnetlink, held: Table) -> Table:
    """Return the endpoints that no packet can reach, which `held`, read by keys, left out.

    Other transactions may be committed meanwhile. Empty on kernels that count elements, where
    `read_slots` leaves none out. Raises KernelError.
    """
    found: Table = {}
    if read_set_sizes(netlink.dump(get_sets(TABLE))):
        return found
    for name, maps in SLOTS.items():
        if Slots(held.get(each, {}) for each in maps).estimate() < LARGE:
            continue
        # A dump during other transactions may lack elements: it finds those that stay.
        replies = netlink.dump(get_elements(TABLE, name), consistent=False)
        known = held.get(name, {}).keys()
        keys = {
            key for each in replies for key in read_elements([each], Shape.EXACT).keys() - known
        }
        if not keys:
            continue
        # Those that were added meanwhile belong to a frontend, and those deleted do not exist.
        slots = Slots(read_set(netlink, TABLE, each, Shape.EXACT) for each in maps)
        keys -= (slots.read(netlink, name) or {}).keys()
        if rows := look_up(netlink, TABLE, name, [[key] for key in keys]):
            found[name] = rows
    return found


def _full(size: int) -> int:
    """Return how many slots of a class are always full."""
    return size // 2 + 1 if size > 1 else size


def _indices(first: int, count: int) -> Iterable[bytes]:
    return (
        _few(first, count) if count <= KEYS_LIMIT else map(_INDEX.pack, range(first, first + count))
    )


@lru_cache(1024)
def _few(first: int, count: int) -> Sequence[bytes]:
    return [_INDEX.pack(number) for number in range(first, first + count)]


def _pieces(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for begin in range(0, len(keys), KEYS_LIMIT):
        yield keys[begin : begin + KEYS_LIMIT]
