"""The addresses and ports that a node needs for itself, and that no Service gets on it.

Anyone who may write a Service may name any external IP (CVE-2020-8554), also one without which the
node does not work. Such frontends are left out before a Service claims them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from pyproxy.errors import Problem, ProblemReason
from pyproxy.model.address import (
    FAMILIES,
    Address,
    Backend,
    Family,
    Port,
    Protocol,
    address_text,
    backend,
)
from pyproxy.model.objects import EndpointSlice, Kind, ObjectName, Service
from pyproxy.policy.routing import (
    FIELDS,
    Frontend,
    PortRouting,
    Scope,
    ServiceRouting,
    divided_node_port,
    with_frontends,
)

ANY = Address(bytes(4))
"""Stands for all addresses of the node, in both families."""


_BROADCASTS = "some are broadcast addresses of this node's networks; these are ignored"


class OwnPort(msgspec.Struct, frozen=True):
    """A TCP port of the node, and the program that listens on it.

    An unspecified address of either family stands for all addresses of the node.
    """

    address: Address
    port: Port
    program: str


class Reserved(msgspec.Struct, frozen=True):
    """The addresses and ports that one node keeps for itself.

    `local` are its own addresses, and `broadcasts` those of its networks. `own_ports` are the
    agent's and the kubelet's. `api_servers` are those that the agent uses: with an external IP on
    one of them, the agent could not learn that the Service is gone. `takes_addresses` says that the
    proxy mode makes a Service address one of the node's, so that the node reaches no other port of
    it. Without `external_ips` none is proxied. `families` are those that the node has; frontends of
    another one are left out without a Problem, because the Service is right.
    """

    local: frozenset[Address] = frozenset()
    broadcasts: frozenset[Address] = frozenset()
    own_ports: tuple[OwnPort, ...] = ()
    api_servers: frozenset[Backend] = frozenset()
    external_ips: bool = True
    takes_addresses: bool = False
    families: frozenset[Family] = FAMILIES

    def changed_addresses(self, before: Reserved) -> frozenset[Address]:
        """Return the addresses whose frontends and endpoints may be routed differently now."""
        servers = self.api_servers ^ before.api_servers
        return frozenset(
            (self.local ^ before.local)
            | (self.broadcasts ^ before.broadcasts)
            | {Address(server[:-2]) for server in servers}
        )


class ReservedFilter:
    """Leaves out what one node keeps for itself.

    Nearly all Services have nothing of it, and cost a few comparisons of sets.
    """

    def __init__(self, reserved: Reserved) -> None:
        self.reserved = reserved
        self._concerns_all = len(reserved.families) < len(FAMILIES)
        self._ports = frozenset(own.port for own in reserved.own_ports)
        self._no_cluster_ips = reserved.local | reserved.broadcasts
        servers = {Address(server[:-2]) for server in reserved.api_servers}
        self._no_external_ips = reserved.broadcasts | servers
        self._whole = servers - reserved.local if reserved.takes_addresses else frozenset()

    def endpoints(
        self, slices: Collection[EndpointSlice]
    ) -> tuple[Collection[EndpointSlice], tuple[Problem, ...]]:
        """Return slices without the endpoints on broadcast addresses of the node's networks.

        The Problems are of the Service, one for each slice.
        """
        broadcasts = self.reserved.broadcasts
        # A list for each slice, because a generator over 100,000 endpoints would be slower.
        if not broadcasts or all(
            broadcasts.isdisjoint([endpoint.address for endpoint in each.endpoints])
            for each in slices
        ):
            return slices, ()
        kept: list[EndpointSlice] = []
        problems: list[Problem] = []
        for each in slices:
            part = tuple(one for one in each.endpoints if one.address not in broadcasts)
            kept.append(msgspec.structs.replace(each, endpoints=part))
            if len(part) < len(each.endpoints):
                field = f"endpoints of EndpointSlice {each.name}"
                problems.append(Problem(Kind.SERVICE.value, str(each.service), field, _BROADCASTS))
        return kept, tuple(problems)

    def frontends(
        self, service: Service, routing: ServiceRouting, node_addresses: Collection[Address] = ()
    ) -> tuple[ServiceRouting, tuple[Problem, ...]]:
        """Return the routing of a Service without reserved frontends.

        It is the same object if it has none. A node port of which only some of the node's addresses
        are reserved is divided into one frontend for each of `node_addresses`.
        """
        if not self.concerns(service):
            return routing, ()
        ports: list[PortRouting] = []
        # Keys only: without a port in the message, one Problem stands for all ports.
        problems: dict[Problem, None] = {}
        for port in routing.ports:
            kept: list[Frontend] = []
            for frontend in self._divided(port, node_addresses):
                if port.family not in self.reserved.families:
                    continue
                problem = self._refused(service.name, port, frontend)
                if problem is None:
                    kept.append(frontend)
                else:
                    problems[problem] = None
            if kept == list(port.frontends):
                ports.append(port)
            elif kept:
                ports.append(with_frontends(port, tuple(kept)))
        if not problems and len(self.reserved.families) == len(FAMILIES):
            return routing, ()
        return msgspec.structs.replace(routing, ports=tuple(ports)), tuple(problems)

    def concerns(self, service: Service) -> bool:
        """Return whether a frontend of a Service may be reserved."""
        # Loops and early returns, because this is the whole cost of nearly every Service.
        if self._concerns_all or not self._no_cluster_ips.isdisjoint(service.cluster_ips):
            return True
        external = service.external_ips
        if external and not (
            self.reserved.external_ips and self._no_external_ips.isdisjoint(external)
        ):
            return True
        balanced = service.load_balancer_ips
        if balanced and not self._no_external_ips.isdisjoint(balanced):
            return True
        for port in service.ports:
            if port.port in self._ports or port.node_port in self._ports:
                return True
        return False

    def _divided(
        self, port: PortRouting, node_addresses: Collection[Address]
    ) -> Iterator[Frontend]:
        for each in port.frontends:
            if (
                each.scope is Scope.NODE_PORT
                and port.protocol is Protocol.TCP
                and any(
                    each.port == own.port and own.address in node_addresses
                    for own in self.reserved.own_ports
                )
            ):
                yield from divided_node_port(port, each, node_addresses)
            else:
                yield each

    def _refused(self, name: ObjectName, port: PortRouting, frontend: Frontend) -> Problem | None:
        if why := self._refused_address(frontend):
            return Problem(Kind.SERVICE.value, str(name), FIELDS[frontend.scope], why)
        if port.protocol is not Protocol.TCP:
            return None
        if own := self._own_port(frontend.address, frontend.port):
            return _taken(name, port, frontend, f"{own.program} listens there")
        if frontend.scope is Scope.EXTERNAL_IP and (
            backend(frontend.address, frontend.port) in self.reserved.api_servers
        ):
            return _taken(name, port, frontend, "this node reaches the API server there")
        return None

    def _refused_address(self, frontend: Frontend) -> str:
        address = frontend.address
        if not address:  # a node port, at all addresses of the node
            return ""
        text = address_text(address)
        if frontend.scope is Scope.EXTERNAL_IP and not self.reserved.external_ips:
            return "not proxied, because the feature gate AllowServiceExternalIPs is false"
        if address in self.reserved.broadcasts:
            return f"{text} is a broadcast address of this node's networks; ignored"
        if frontend.scope is Scope.EXTERNAL_IP and address in self._whole:
            return f"{text} is the API server of this node, which would not reach it; ignored"
        if frontend.scope is Scope.CLUSTER_IP and address in self.reserved.local:
            return f"{text} is an address of this node, which no cluster IP can be; ignored"
        return ""

    def _own_port(self, address: Address, port: Port) -> OwnPort | None:
        for own in self.reserved.own_ports:
            # A node port without an address has all addresses of the node.
            here = (
                own.address == address
                if any(own.address)
                else not address or address in self.reserved.local
            )
            if own.port == port and here:
                return own
        return None


def _taken(name: ObjectName, port: PortRouting, frontend: Frontend, why: str) -> Problem:
    place = f"{address_text(frontend.address)} port" if frontend.address else "node port"
    message = (
        f"{place} {frontend.port}/{port.protocol.name} is not proxied for port {port.name!r}: {why}"
    )
    field, reason = FIELDS[frontend.scope], ProblemReason.FRONTEND_CONFLICT
    return Problem(Kind.SERVICE.value, str(name), field, message, reason)
