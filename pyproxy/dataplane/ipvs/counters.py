"""Connections by virtual service and real server, which IPVS always counts.

A counter starts at 0 when its virtual service or real server is added. The name of a Service is
the comment on its frontend's element; a virtual service by mark has the name of the frontend that
leads to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from pyproxy.dataplane.connections import Counted, Totals, is_selected
from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.kernel import Kernel
from pyproxy.dataplane.ipvs.rows import virtual_by_mark, virtual_of_key
from pyproxy.dataplane.ipvs.schema import SERVERS, TABLE, VIRTUALS
from pyproxy.dataplane.nft.readback import read_table
from pyproxy.dataplane.nft.schema import Rows, by_name
from pyproxy.errors import UsageError
from pyproxy.model.address import Backend, Family, Mark, backend_text
from pyproxy.netlink.elements import Tag
from pyproxy.netlink.ipvs import Virtual
from pyproxy.netlink.nfnetlink import Nfnetlink

# Both sets, because a SPLIT frontend without local endpoints has its element in `dropped`.
_NAMED = (schema.FRONTENDS, schema.DROPPED)
_READ = by_name((*_NAMED, schema.INTERNAL_SERVICES))


class IpvsCounters:
    """Reads the counters of the network namespace that it is made in."""

    def __init__(self) -> None:
        self._netlink = Nfnetlink()
        self._kernel = Kernel()

    def require(self) -> None:
        """Raise UsageError if the kernel has no table of this mode. Raises KernelError."""
        if not self._read():
            raise UsageError(
                f"the kernel holds no frontend in table inet {TABLE}: run top on a node where "
                "pyproxy serves in ipvs mode, in the host's network namespace"
            )

    def services(self, wanted: str = "") -> Totals:
        """Read one total for each virtual service of the Services that `wanted` names.

        Dumps all virtual services and frontends. Raises KernelError.
        """
        counts = self._kernel.service_connections()
        names = {
            virtual: name
            for virtual, name in _names(self._read())
            if virtual in counts and is_selected(name, wanted)
        }
        return Totals(
            {(VIRTUALS, virtual): counts[virtual] for virtual in names},
            {(VIRTUALS, virtual): Counted(name) for virtual, name in names.items()},
        )

    def endpoints(self, services: Totals, *, everything: bool) -> Totals:  # noqa: ARG002
        """Read one total for each real server, with a request per virtual service; KernelError.

        The kernel has no dump of all real servers.
        """
        by_element: dict[tuple[str, tuple[Virtual, Backend]], int] = {}
        owners: dict[tuple[str, tuple[Virtual, Backend]], Counted] = {}
        for (_, virtual), owner in services.owners.items():
            for server, total in self._kernel.server_connections(virtual).items():
                element = SERVERS, (virtual, server)
                by_element[element] = total
                owners[element] = Counted(owner.service, backend_text(server))
        return Totals(by_element, owners)

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._kernel.close()

    def _read(self) -> Mapping[str, Rows]:
        return read_table(self._netlink, TABLE, _READ)


def _names(table: Mapping[str, Rows]) -> Iterator[tuple[Virtual, str]]:
    for family in Family:
        names = {
            key: value.comment
            for kind in _NAMED
            for key, value in table.get(kind.of(family), {}).items()
            if isinstance(value, Tag)
        }
        for key, name in names.items():
            yield virtual_of_key(key, family), name
        for key, value in table.get(schema.INTERNAL_SERVICES.of(family), {}).items():
            if isinstance(value, bytes) and key in names:
                yield (
                    virtual_by_mark(family, Mark(int.from_bytes(value, sys.byteorder))),
                    names[key],
                )
