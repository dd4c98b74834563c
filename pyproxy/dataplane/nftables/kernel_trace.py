"""What becomes of a packet by what the kernel holds: `tracer`, over elements read one by one.

A trace looks up a dozen elements, so it costs the same whatever the number of Services. Sets of
ranges, which hold few, are read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.layout import read_layout
from pyproxy.dataplane.nftables.loaded import loaded_options
from pyproxy.dataplane.nftables.lookup import Lookups, Machine
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.dataplane.nftables.tracer import trace
from pyproxy.dataplane.packets import Packet, TraceResult
from pyproxy.errors import StaleStateError, UsageError
from pyproxy.model.address import Address
from pyproxy.netlink import elements, nftables
from pyproxy.netlink.elements import Shape, Value
from pyproxy.netlink.nfnetlink import Nfnetlink

_ATTEMPTS = 5

_FOREIGN = (
    "somebody has changed the rules of the table: this is what they would do as pyproxy wrote them"
)
_RESTLESS = "the kernel's rules changed while they were read: parts may be of different moments"


class KernelRows(Mapping[bytes, Value]):
    """One set's elements in the kernel; each is asked for once and stays as it was then.

    Lookups raise KernelError, beside KeyError for an element that is not there.
    """

    def __init__(self, netlink: Nfnetlink, set_name: str) -> None:
        self._netlink = netlink
        self._name = set_name
        self._shape = schema.BY_NAME[set_name][0].shape
        self._seen: dict[bytes, Value | None] = {}
        self._whole: dict[bytes, Value] | None = None

    def __getitem__(self, key: bytes) -> Value:
        if self._shape is not Shape.EXACT:
            return self._all()[key]
        if key not in self._seen:
            self._seen[key] = self._ask(key)
        found = self._seen[key]
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _ask(self, key: bytes) -> Value | None:
        try:
            routing = self._netlink.get(elements.get_element(TABLE, self._name, key))
        except StaleStateError:
            return None
        return elements.read_elements([routing], self._shape).get(key)

    def _all(self) -> dict[bytes, Value]:
        if self._whole is None:
            request = elements.get_elements(TABLE, self._name)
            self._whole = elements.read_elements(self._netlink.dump(request), self._shape)
        return self._whole


def kernel_rows(netlink: Nfnetlink) -> Lookups:
    """Give every set of ours in the kernel, nothing of it read yet."""
    return {name: KernelRows(netlink, name) for name in schema.BY_NAME}


class KernelTracer:
    """Traces through table `inet pyproxy` of the network namespace that it is made in.

    `local_addresses` gives the addresses of this machine's interfaces.
    """

    def __init__(self, local_addresses: Callable[[], Iterable[Address]]) -> None:
        self._local_addresses = local_addresses
        self._netlink = Nfnetlink()

    def close(self) -> None:
        """Give back the socket."""
        self._netlink.close()

    def trace(self, packet: Packet) -> TraceResult:
        """Follow a packet through the table as it is now. Raises KernelError, UsageError."""
        options, remarks = self._options()
        local = frozenset(self._local_addresses())
        for _ in range(_ATTEMPTS):
            before = self._generation()
            rows = kernel_rows(self._netlink)
            account = trace(packet, Machine(rows, options, local, rows)).result(remarks)
            if self._generation() == before:
                return account
        return trace(packet, Machine(rows, options, local, rows)).result((*remarks, _RESTLESS))

    def _generation(self) -> int:
        return nftables.read_generation(self._netlink.get(nftables.get_generation()))

    def _options(self) -> tuple[Options, tuple[str, ...]]:
        layout = read_layout(self._netlink)
        if not layout.chains:
            raise UsageError(
                f"the kernel holds no table inet {TABLE}: trace reads what pyproxy writes in the "
                "mode nftables; run it on a node where that serves, in the host's network"
            )
        options = loaded_options(layout)
        if options is None:
            raise UsageError(
                f"table inet {TABLE} was loaded by another version of pyproxy: use that version's "
                "trace, or start this version's agent"
            )
        return options, () if layout.is_loaded(options) else (_FOREIGN,)
