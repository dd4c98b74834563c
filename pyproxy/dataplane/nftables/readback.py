"""What the kernel holds of ours: the table's elements and chains, read and decoded."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import msgspec

from pyproxy.dataplane.nft import readback
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Rows, Table
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.rows import slots_of
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.dataplane.slots import place
from pyproxy.model.address import Backend, Family
from pyproxy.netlink import elements
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.routing import PortRouting, ServiceRouting, Use


def read_table(netlink: Nfnetlink) -> Table:
    """Read all elements that pyproxy fills; empty where there is no table. Raises KernelError."""
    return readback.read_table(netlink, TABLE, schema.BY_NAME)


def read_learned(netlink: Nfnetlink, family: Family) -> Rows:
    """Read which endpoint each client of a sticky frontend has. Raises KernelError."""
    name = schema.AFFINITY.of(family)
    return elements.read_elements(
        netlink.dump(elements.get_elements(TABLE, name)), schema.AFFINITY.shape
    )


class Remembered(msgspec.Struct, frozen=True):
    """The slots that endpoints have in the kernel: the rows of each family's ENDPOINTS."""

    endpoints: Mapping[Family, Rows]

    def place(self, wanted: ServiceRouting) -> ServiceRouting:
        """Order a Service's backends as the kernel has them."""
        if not any(self.endpoints.values()):
            return wanted
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
            # A port's frontends agree, so the first one that has slots speaks for all.
            key = frontend_key(frontend.address, port.protocol, frontend.port)
            if frontend.use is Use.LOCAL:
                local = local or slots_of(rows, key, chains.CLUSTER)
            elif frontend.use in (Use.CLUSTER, Use.SPLIT):
                cluster = cluster or slots_of(rows, key, chains.CLUSTER)
                local = local or slots_of(rows, key, chains.LOCAL)
        cluster, local = place(cluster, port.cluster), place(local, port.local)
        if cluster is port.cluster and local is port.local:
            return port
        return msgspec.structs.replace(port, cluster=cluster, local=local)


def recall(held: Table) -> Remembered:
    """Find the slots in the elements that were read back."""
    return Remembered({family: held.get(schema.ENDPOINTS.of(family), {}) for family in Family})
