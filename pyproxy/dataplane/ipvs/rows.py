"""From a Service's routing to its rows: virtual services, real servers and set elements."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping

from pyproxy.dataplane.ipvs import schema
from pyproxy.dataplane.ipvs.schedulers import scheduling, scheduling_by_mark
from pyproxy.dataplane.ipvs.schema import SERVERS, VIRTUALS, Table
from pyproxy.dataplane.nft.rows import SharedRow, frontend_key, joined_ranges, service_comment
from pyproxy.dataplane.nft.schema import SetKind
from pyproxy.model.address import Address, Backend, Family, Mark, Port, Protocol
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Tag
from pyproxy.netlink.ipvs import Virtual
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

PortKey = tuple[ObjectName, Family, Protocol, str]
"""A Service's port in one family, by name."""

_WEIGHT = 1
_DRAINING = 0


def split_ports(routing: ServiceRouting) -> Iterator[tuple[PortKey, PortRouting]]:
    """Yield the ports that need a virtual service by mark, for internal clients."""
    for port in routing.ports:
        if port.cluster and any(frontend.use is Use.SPLIT for frontend in port.frontends):
            yield port_key(routing.name, port), port


def port_key(name: ObjectName, port: PortRouting) -> PortKey:
    """Return the key of a Service's port."""
    return name, port.family, port.protocol, port.name


def virtual_by_mark(family: Family, mark: Mark) -> Virtual:
    """Return the virtual service of a mark."""
    return Virtual(family, 0, Address(b""), Port(0), mark)


def virtual_of_key(key: bytes, family: Family) -> Virtual:
    """Return the virtual service of a frontend, by the key of its element."""
    # The key has three fields padded to 4 bytes: address, protocol, port.
    width = family.bits // 8
    port = Port(int.from_bytes(key[width + 4 : width + 6], "big"))
    return Virtual(family, key[width], Address(key[:width]), port)


def key_of_virtual(virtual: Virtual) -> bytes:
    """Return the key of a virtual service's elements; that of one by mark has no address."""
    return frontend_key(virtual.address, Protocol(schema.protocol_of(virtual)), virtual.port)


def virtuals_by_address(routing: ServiceRouting) -> Iterator[Virtual]:
    """Yield the virtual service of each frontend, also where the rules reject its packets."""
    for port in routing.ports:
        for frontend in port.frontends:
            yield Virtual(port.family, int(port.protocol), frontend.address, frontend.port)


def add_service(
    routing: ServiceRouting, marks: Mapping[PortKey, int], scheduler: str, table: Table
) -> None:
    """Add the rows that belong to one Service alone.

    `marks` has a number for each of its `split_ports`. `scheduler` is the default.
    """
    for port in routing.ports:
        _Port(routing, port, scheduler, table).add(marks)


def shared_rows(routing: ServiceRouting) -> Iterator[SharedRow]:
    """Yield the rows that other Services may need too, once for each port that needs them."""
    for port in routing.ports:
        hairpin = schema.HAIRPIN.of(port.family)
        for backend in port.hairpin:
            # The key is source and destination: the endpoint's own address, twice.
            yield hairpin, backend[:-2] * 2
        for frontend in port.frontends:
            if frontend.scope is Scope.CLUSTER_IP:
                yield schema.CLUSTER_IPS.of(port.family), frontend.address
            # A node port's address is on a device of the node already.
            if frontend.scope is not Scope.NODE_PORT:
                yield schema.ADDRESSES_ON_DEVICE, frontend.address
            if frontend.scope is Scope.LOAD_BALANCER and routing.health_check_port:
                key = frontend_key(frontend.address, Protocol.TCP, routing.health_check_port)
                yield schema.HEALTH_CHECKS.of(port.family), key


class _Port:
    """Adds the rows of one port to a table."""

    def __init__(
        self, routing: ServiceRouting, port: PortRouting, default_scheduler: str, table: Table
    ) -> None:
        self._route = routing
        self._port = port
        self._scheduler = routing.scheduler or default_scheduler
        self._table = table
        self._comment = service_comment(routing.name, port.name)

    def add(self, marks: Mapping[PortKey, int]) -> None:
        port = self._port
        number = marks.get(port_key(self._route.name, port))
        mark = schema.mark_of(number, port.protocol) if number is not None else None
        if mark is not None:
            self._virtual(virtual_by_mark(port.family, mark), port.cluster)
        for frontend in port.frontends:
            self._frontend(frontend, mark)

    def _frontend(self, frontend: Frontend, mark: Mark | None) -> None:
        port = self._port
        key = frontend_key(frontend.address, port.protocol, frontend.port)
        virtual = Virtual(port.family, int(port.protocol), frontend.address, frontend.port)
        match frontend.use:
            case Use.REJECT:
                self._put(schema.NO_ENDPOINT_SERVICES, key)
            case Use.DROP:
                self._put(schema.DROPPED, key)
            case Use.CLUSTER:
                self._virtual(virtual, port.cluster, key)
                if frontend.scope is not Scope.CLUSTER_IP:
                    self._put(schema.MASQUERADED, key)
            case Use.LOCAL:
                self._virtual(virtual, port.local, key)
            case Use.SPLIT:
                if mark is not None:
                    internal = self._table.setdefault(schema.INTERNAL_SERVICES.of(port.family), {})
                    # nf_tables keeps a mark in host byte order.
                    internal[key] = mark.to_bytes(4, sys.byteorder)
                # The rules look at `dropped` only after they have marked internal clients.
                if port.local:
                    self._virtual(virtual, port.local, key)
                else:
                    self._put(schema.DROPPED, key)
        if frontend.scope is Scope.LOAD_BALANCER and self._route.source_ranges:
            self._put(schema.SOURCE_RANGE_FRONTENDS, key)
            sources = self._table.setdefault(schema.SOURCES.of(port.family), {})
            for low, high in joined_ranges(self._route.source_ranges, port.family):
                sources[key + low + key + high] = b""

    def _put(self, kind: SetKind, key: bytes) -> None:
        rows = self._table.setdefault(kind.of(self._port.family), {})
        rows[key] = Tag("", self._comment)

    def _virtual(
        self, virtual: Virtual, backends: Iterable[Backend], key: bytes | None = None
    ) -> None:
        schedule = scheduling_by_mark if virtual.mark else scheduling
        how = schedule(self._scheduler, self._route.affinity_timeout)
        self._table.setdefault(VIRTUALS, {})[virtual] = how
        servers = self._table.setdefault(SERVERS, {})
        # A terminating endpoint keeps its connections and gets no new ones.
        for backend in self._port.draining:
            servers[virtual, backend] = _DRAINING
        for backend in backends:
            servers[virtual, backend] = _WEIGHT
        if key is not None:
            self._put(schema.FRONTENDS, key)
