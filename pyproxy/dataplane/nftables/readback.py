"""The table read back: elements, slots of endpoints, learned affinities."""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import closing
from functools import partial

import msgspec

from pyproxy.dataplane.diff import Delta, diff
from pyproxy.dataplane.nft import readback
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Kinds, Rows, SetKind, Table
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.compile import add_service, slots_of
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.dataplane.nftables.slot_lookup import SLOTS, find_unreachable, read_slots
from pyproxy.dataplane.slots import place
from pyproxy.errors import KernelError
from pyproxy.model.address import Backend, Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink import element_counters, elements
from pyproxy.netlink.elements import Shape, Value
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation
from pyproxy.policy.routing import PortRouting, ServiceRouting, Use

log = logging.getLogger(__name__)

_VERDICTS_FIRST: Kinds = dict(
    sorted(schema.BY_NAME.items(), key=lambda each: (each[0] in SLOTS, each[0]))
)


def read_table(
    netlink: Nfnetlink,
    sets: Container[str] | None = None,
    *,
    reachable: bool = False,
    consistent: bool = True,
) -> Table:
    """Read the elements that pyproxy fills; empty where there is no table. Raises KernelError.

    With `sets`, only these are read. With `reachable`, endpoints that no packet can reach may be
    left out, which is quicker on kernels that do not count elements. Unless it is to be
    `consistent`, elements may be missing if a commit interrupts a dump.
    """

    def by_keys(name: str, size: int | None, table: Table) -> Rows | None:
        if name not in SLOTS or (size is None and not reachable):
            return None
        return read_slots(netlink, name, partial(_verdicts, netlink, name, sets, table), size)

    return readback.read_table(
        netlink, TABLE, _VERDICTS_FIRST, sets, by_keys, consistent=consistent
    )


def _verdicts(
    netlink: Nfnetlink, name: str, sets: Container[str] | None, table: Table
) -> Iterator[Rows]:
    """Yield the maps whose verdicts lead to a map of endpoints."""
    for verdicts in SLOTS[name]:
        if sets is None or verdicts in sets:
            yield table.get(verdicts, {})
        else:
            yield readback.read_set(netlink, TABLE, verdicts, Shape.EXACT)


def read_learned(netlink: Nfnetlink, family: Family, kind: SetKind = schema.AFFINITY) -> Rows:
    """Read a map or set that packets fill, by default each client's endpoint; KernelError."""
    request = elements.get_elements(TABLE, kind.of(family))
    return elements.read_elements(netlink.dump(request), kind.shape)


def read_refused(netlink: Nfnetlink, family: Family) -> dict[bytes, int]:
    """Count each frontend's connections of late whose client was not learned; KernelError."""
    name = schema.AFFINITY_REFUSED.of(family)
    return element_counters.read_packet_counts(netlink.dump(elements.get_elements(TABLE, name)))


class ReadAhead:
    """Reads the table once, in a thread that starts at once. Raises KernelError.

    The agent needs the table when the API server's lists are complete, and a large table takes
    long, so it is read while they are decoded. On a kernel that does not count elements, the thread
    then searches for endpoints that no packet can reach. If the table is in use by then, it passes
    the names of their sets to `found_later`, within seconds.
    """

    def __init__(self, found_later: Callable[[frozenset[str]], None]) -> None:
        # A socket belongs to the network namespace of the thread that opens it.
        self._netlink = Nfnetlink()
        self._found_later = found_later
        self._found: tuple[int, Table] | None = None
        self._unreachable: Table = {}
        self._has_read = threading.Event()
        self._lock = threading.Lock()
        self._is_taken = False
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def take(self, now: int) -> Table | None:
        """Wait for the table and return it, once, if it is of nf_tables' generation `now`.

        Returns None where nf_tables has committed anything since, or reading failed: the table
        must then be read again.
        """
        self._has_read.wait()
        with self._lock:
            self._is_taken = True
            found, self._found = self._found, None
            unreachable, self._unreachable = self._unreachable, {}
        if found is None or found[0] != now:
            if unreachable:
                self._found_later(frozenset(unreachable))
            return None
        table = found[1]
        # `table` lacks a set in which no packet can reach anything.
        return table | {name: table.get(name, {}) | rows for name, rows in unreachable.items()}

    def wait(self) -> None:
        """Wait until the search has ended too."""
        self._thread.join()

    def _run(self) -> None:
        with closing(self._netlink) as netlink:
            try:
                table = self._read(netlink)
            except KernelError as error:
                log.debug("cannot read table inet %s ahead: %s", TABLE, error)
                return
            finally:
                self._has_read.set()
            try:
                unreachable = find_unreachable(netlink, table)
            except KernelError as error:
                # The next audit reads the whole table.
                log.debug("cannot search table inet %s: %s", TABLE, error)
                return
        with self._lock:
            if not self._is_taken:
                self._unreachable = unreachable
                return
        if unreachable:
            self._found_later(frozenset(unreachable))

    def _read(self, netlink: Nfnetlink) -> Table:
        # Before the table, so that a commit during the read-back shows in `take`.
        now = read_generation(netlink.get(get_generation()))
        table = read_table(netlink, reachable=True)
        self._found = now, table
        return table


class KernelSlots(msgspec.Struct, frozen=True):
    """The slots that endpoints have in the kernel: the rows of each family's endpoints.

    Those of node ports have shorter keys.
    """

    endpoints: Mapping[Family, Rows]

    def place(self, wanted: ServiceRouting) -> ServiceRouting:
        """Order a Service's endpoints as the kernel has them, so that few rows are written."""
        if not any(self.endpoints.values()):
            return wanted
        # Unchanged routings stay the same objects, which a large first sync need not copy.
        ports = tuple([self._place_port(port) for port in wanted.ports])
        if all(map(operator.is_, ports, wanted.ports)):
            return wanted
        return msgspec.structs.replace(wanted, ports=ports)

    def _place_port(self, port: PortRouting) -> PortRouting:
        rows = self.endpoints[port.family]
        if not rows:
            return port
        cluster: tuple[Backend, ...] = ()
        local: tuple[Backend, ...] = ()
        for frontend in port.frontends:
            # All frontends of a port have the same slots: the first one that has any is enough.
            key = frontend_key(frontend.address, port.protocol, frontend.port)
            # A frontend with one list of endpoints has it in CLUSTER's slots, local or not.
            if frontend.use is Use.LOCAL:
                local = local or slots_of(rows, key, chains.CLUSTER, port.family)
            elif frontend.use in (Use.CLUSTER, Use.SPLIT):
                cluster = cluster or slots_of(rows, key, chains.CLUSTER, port.family)
                local = local or slots_of(rows, key, chains.LOCAL, port.family)
        cluster, local = place(cluster, port.cluster), place(local, port.local)
        if cluster is port.cluster and local is port.local:
            return port
        return msgspec.structs.replace(port, cluster=cluster, local=local)


def kernel_slots(held: Table) -> KernelSlots:
    """Return the slots in the elements that were read back."""
    found: dict[Family, Rows] = {}
    for family in Family:
        rows = held.get(schema.ENDPOINTS.of(family), {})
        node_ports = held.get(schema.NODE_PORT_ENDPOINTS.of(family), {})
        found[family] = rows | node_ports if node_ports else rows
    return KernelSlots(found)


def keep_slots(
    held: Table,
    services: dict[ObjectName, ServiceRouting],
    wanted: Table,
    delta: Delta[bytes, Value],
) -> Delta[bytes, Value]:
    """Have endpoints keep the slots that they have in the kernel; return the smaller delta.

    `wanted` are the rows of `services`, and `delta` its difference from `held`. The Services that
    have other slots in the kernel are replaced in `services`, and their rows in `wanted`.
    """
    moved = {
        key[: -schema.INDEX_SIZE]
        for side in (delta.remove, delta.add)
        for name in SLOTS
        for key in side.get(name, ())
    }
    if not moved:
        return delta
    slots = kernel_slots(held)
    for name, routing in services.items():
        if any(key in moved for key in _frontend_keys(routing)):
            services[name] = slots.place(routing)
            # The order of endpoints changes no key, so that this replaces rows.
            add_service(services[name], wanted)
    again = diff(*({name: table.get(name, {}) for name in SLOTS} for table in (held, wanted)))
    return Delta(
        {name: rows for name, rows in delta.remove.items() if name not in SLOTS} | again.remove,
        {name: rows for name, rows in delta.add.items() if name not in SLOTS} | again.add,
    )


def _frontend_keys(routing: ServiceRouting) -> Iterator[bytes]:
    for port in routing.ports:
        for frontend in port.frontends:
            yield frontend_key(frontend.address, port.protocol, frontend.port)
