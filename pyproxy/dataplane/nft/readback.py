"""Elements read back from the kernel: all of a table, or one by one."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping

from pyproxy.dataplane.nft.schema import Kinds, Rows, Table
from pyproxy.errors import StaleStateError
from pyproxy.netlink import elements, nftables
from pyproxy.netlink.elements import Shape, Value
from pyproxy.netlink.nfnetlink import Nfnetlink

_ATTEMPTS = 5

ReadByKeys = Callable[[str, int | None, Table], Rows | None]
"""Return the elements of a set, None if it has to be dumped.

Gets the set's name, the number of its elements if the kernel reports it, and what was read so far.
"""


def read_tables(netlink: Nfnetlink, *, consistent: bool = True) -> set[str]:
    """Return the names of the inet family's tables. Raises KernelError."""
    return nftables.read_table_names(netlink.dump(nftables.get_tables(), consistent=consistent))


def read_table(
    netlink: Nfnetlink,
    table_name: str,
    kinds: Kinds,
    sets: Container[str] | None = None,
    by_keys: ReadByKeys | None = None,
    *,
    consistent: bool = True,
) -> Table:
    """Read all elements of the sets in `kinds`, in their order; empty where there is no table.

    With `sets`, only these are read. Maps that packets fill are left out. `by_keys` reads what it
    can without a dump. Unless it is to be `consistent`, a dump that was interrupted by a commit
    counts too, and may lack elements. Raises KernelError.
    """
    if table_name not in read_tables(netlink, consistent=consistent):
        return {}
    replies = list(netlink.dump(nftables.get_sets(table_name), consistent=consistent))
    present, sizes = nftables.read_sets(replies), nftables.read_set_sizes(replies)
    table: Table = {}
    for name, (kind, _) in kinds.items():
        if name not in present or kind.learned or (sets is not None and name not in sets):
            continue
        rows = by_keys(name, sizes.get(name), table) if by_keys is not None else None
        if rows is None:
            rows = read_set(netlink, table_name, name, kind.shape, consistent=consistent)
        if rows:
            table[name] = rows
    return dict(sorted(table.items()))


def read_set(
    netlink: Nfnetlink, table_name: str, name: str, shape: Shape, *, consistent: bool = True
) -> Rows:
    """Dump all elements of a set; empty where there is none. Raises KernelError."""
    try:
        if not consistent:
            request = elements.get_elements(table_name, name)
            return elements.read_elements(netlink.dump(request, consistent=False), shape)
        return _read_elements(netlink, table_name, name, shape)
    except StaleStateError:
        # The set was deleted after the list of sets was read.
        return {}


def _read_elements(netlink: Nfnetlink, table_name: str, name: str, shape: Shape) -> Rows:
    # The kernel moves a set that has just grown to a larger hash table in the background. A dump
    # meanwhile leaves some elements out, so it is repeated until it has as many as the set.
    for _ in range(_ATTEMPTS):
        rows = elements.read_elements(netlink.dump(elements.get_elements(table_name, name)), shape)
        sizes = nftables.read_set_sizes(netlink.dump(nftables.get_sets(table_name)))
        # Sets of ranges are trees or tables that are never resized like this. Linux before 6.16
        # does not report sizes, so there the first dump has to do.
        if shape is not Shape.EXACT or len(rows) == sizes.get(name, len(rows)):
            break
    return rows


def read_element(netlink: Nfnetlink, table_name: str, set_name: str, key: bytes) -> Rows:
    """Read one element; empty where there is no such element or set. Raises KernelError."""
    try:
        reply = netlink.get(elements.get_element(table_name, set_name, key))
    except StaleStateError:
        return {}
    return elements.read_elements([reply], Shape.EXACT)


class KernelRows(Mapping[bytes, Value]):
    """One set's elements in the kernel, each read once, at the first lookup.

    A set of ranges is read whole. Lookups raise KernelError, and KeyError for a missing element.
    """

    def __init__(self, netlink: Nfnetlink, table_name: str, set_name: str, shape: Shape) -> None:
        self._netlink = netlink
        self._table = table_name
        self._name = set_name
        self._shape = shape
        # None: the kernel has no such element. A trace may ask for it again.
        self._seen: dict[bytes, Value | None] = {}
        self._all: Rows | None = None

    def __getitem__(self, key: bytes) -> Value:
        if self._shape is not Shape.EXACT:
            return self._read_all()[key]
        if key not in self._seen:
            self._seen[key] = read_element(self._netlink, self._table, self._name, key).get(key)
        found = self._seen[key]
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._read_all())

    def __len__(self) -> int:
        return len(self._read_all())

    def _read_all(self) -> Rows:
        if self._all is None:
            request = elements.get_elements(self._table, self._name)
            self._all = elements.read_elements(self._netlink.dump(request), self._shape)
        return self._all


def kernel_rows(
    netlink: Nfnetlink, table_name: str, kinds: Kinds
) -> Mapping[str, Mapping[bytes, Value]]:
    """Return every set in `kinds`, none of it read yet."""
    return {
        name: KernelRows(netlink, table_name, name, kind.shape) for name, (kind, _) in kinds.items()
    }
