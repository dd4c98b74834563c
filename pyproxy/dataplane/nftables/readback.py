"""The table read back: elements, slots of endpoints, learned affinities."""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Container, Mapping
from contextlib import closing

import msgspec

from pyproxy.dataplane.nft import readback
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Rows, SetKind, Table
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.compile import slots_of
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.dataplane.slots import place
from pyproxy.errors import KernelError
from pyproxy.model.address import Backend, Family
from pyproxy.netlink import element_counters, elements
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation
from pyproxy.policy.routing import PortRouting, ServiceRouting, Use

log = logging.getLogger(__name__)


def read_table(netlink: Nfnetlink, sets: Container[str] | None = None) -> Table:
    """Read the elements that pyproxy fills; empty where there is no table. Raises KernelError.

    With `sets`, only these are read.
    """
    return readback.read_table(netlink, TABLE, schema.BY_NAME, sets)


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

    The agent needs the table when the API server's lists are complete. The kernel walks a set once
    more for each part of a dump, so a large table takes long, and decoding lists can go on
    meanwhile.
    """

    def __init__(self) -> None:
        # A socket belongs to the network namespace of the thread that opens it.
        self._netlink = Nfnetlink()
        self._found: tuple[int, Table] | None = None
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
        self._thread.start()

    def take(self, now: int) -> Table | None:
        """Wait for the table and return it, once, if it is of nf_tables' generation `now`.

        Returns None where nf_tables has committed anything since, or reading failed: the table
        must then be read again.
        """
        self._thread.join()
        found, self._found = self._found, None
        return found[1] if found is not None and found[0] == now else None

    def _read(self) -> None:
        with closing(self._netlink) as netlink:
            try:
                # Before the table, so that a commit during the read-back shows in `take`.
                now = read_generation(netlink.get(get_generation()))
                self._found = now, read_table(netlink)
            except KernelError as error:
                log.debug("cannot read table inet %s ahead: %s", TABLE, error)


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
