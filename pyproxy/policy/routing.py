"""The routing of one Service: the input of every dataplane."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from pyproxy.model.address import Address, Backend, Family, Network, Port, Protocol, family_of
from pyproxy.model.objects import ObjectName


class Scope(enum.Enum):
    """The kind of a frontend's address; all but CLUSTER_IP follow the external policy."""

    CLUSTER_IP = "clusterIP"
    EXTERNAL_IP = "externalIP"
    LOAD_BALANCER = "loadBalancer"
    NODE_PORT = "nodePort"


FIELDS = {
    Scope.CLUSTER_IP: "spec.clusterIPs",
    Scope.EXTERNAL_IP: "spec.externalIPs",
    Scope.LOAD_BALANCER: "status.loadBalancer.ingress",
    Scope.NODE_PORT: "spec.ports",
}
"""The field of a Service that a frontend comes from."""

_NODE_PORT: Final = Scope.NODE_PORT
_EXTERNAL_IP: Final = Scope.EXTERNAL_IP


class Use(enum.Enum):
    """How the connections of a frontend are routed.

    CLUSTER uses `PortRouting.cluster`, masqueraded if the scope is external. LOCAL uses
    `PortRouting.local` and keeps the client's address. SPLIT is the external policy Local: pods and
    the node use `cluster`; all other clients use `local`, or are dropped if it is empty. REJECT
    sends a TCP reset or an ICMP error, because no endpoint exists. DROP discards packets, because
    endpoints exist but the policy allows none of them.
    """

    CLUSTER = "cluster"
    LOCAL = "local"
    SPLIT = "split"
    REJECT = "reject"
    DROP = "drop"


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """One address and port that clients connect to.

    `address` is empty for a node port, which has all of the node's addresses. It has one address if
    `expand_node_ports` has divided it: in ipvs mode, and if one of the addresses differs because a
    program of the node's listens there or source ranges restrict it.
    """

    scope: Scope
    address: Address
    port: Port
    use: Use


class PortRouting(msgspec.Struct, frozen=True, gc=False):
    """The routing of one port of a Service in one IP family.

    In `frontends` the node port comes last. `cluster` and `local` have no duplicates, and are empty
    if no frontend uses them. They are sorted here; their order has no meaning, so a dataplane with
    numbered slots may reorder them.

    `hairpin` are the endpoints whose connections to themselves pass through this node and must be
    masqueraded: those on this node or without a node. With a SPLIT frontend these are all
    endpoints, because SPLIT serves pods of other nodes too. `draining` are endpoints that terminate
    and still serve, while new connections go to others. `fallback` are those of `cluster` and
    `local` that terminate, used because no other is ready.
    """

    name: str
    family: Family
    protocol: Protocol
    frontends: tuple[Frontend, ...]
    cluster: tuple[Backend, ...]
    local: tuple[Backend, ...]
    hairpin: tuple[Backend, ...] = ()
    draining: tuple[Backend, ...] = ()
    fallback: tuple[Backend, ...] = ()


class ServiceRouting(msgspec.Struct, frozen=True, gc=False):
    """The routing of a whole Service on this node.

    `source_ranges` restrict the clients of frontends of scope LOAD_BALANCER. Empty allows every
    client; ranges of one family only allow no client of the other. `affinity_timeout` is in
    seconds, 0 without session affinity. `scheduler` is the IPVS scheduler, empty for the default.

    `frontends` is 0, except in a part with session affinity: about the number of frontends of the
    whole Service in the part's family, rounded up to a power of two. `health_check_port` is
    0 without load balancer addresses that use it. `offload` permits the fast path to established
    connections.
    """

    name: ObjectName
    ports: tuple[PortRouting, ...]
    source_ranges: tuple[Network, ...] = ()
    affinity_timeout: int = 0
    scheduler: str = ""
    frontends: int = 0
    health_check_port: Port = Port(0)
    offload: bool = False


def with_frontends(port: PortRouting, frontends: tuple[Frontend, ...]) -> PortRouting:
    """Return a port with these frontends only, and the endpoints that they use."""
    uses = {frontend.use for frontend in frontends}
    cluster = port.cluster if uses & {Use.CLUSTER, Use.SPLIT} else ()
    local = port.local if uses & {Use.LOCAL, Use.SPLIT} else ()
    used = {*cluster, *local}
    hairpin = tuple(backend for backend in port.hairpin if backend in used)
    return msgspec.structs.replace(
        port, frontends=frontends, cluster=cluster, local=local, hairpin=hairpin
    )


def expand_node_ports(routing: ServiceRouting, addresses: Collection[Address]) -> ServiceRouting:
    """Replace each node port by one frontend for each node address of the port's family.

    An address and port that the Service already has as a load balancer address, with its source
    ranges, is skipped. One that it also has as an external IP is a node port, the stronger claim.
    """
    for port in routing.ports:  # a loop, because a generator would be slower here
        # The node port is last in `frontends`.
        if port.frontends and port.frontends[-1].scope is _NODE_PORT:
            break
    else:
        return routing
    ports = tuple(_expanded(port, addresses) for port in routing.ports)
    return msgspec.structs.replace(routing, ports=ports)


def has_restricted_node_port(routing: ServiceRouting, addresses: Collection[Address]) -> bool:
    """Return whether source ranges restrict one of `addresses` at a node port of the Service.

    The other addresses of that node port admit every client.
    """
    if not routing.source_ranges:
        return False
    return any(
        each.scope is Scope.LOAD_BALANCER
        and each.address in addresses
        and any(_is_node_port(other) and other.port == each.port for other in port.frontends)
        for port in routing.ports
        for each in port.frontends
    )


def divided_node_port(
    port: PortRouting, frontend: Frontend, addresses: Collection[Address]
) -> Iterator[Frontend]:
    """Yield a node port as one frontend for each address of the port's family, in order."""
    # The node's addresses come in the order of its routes, which may change without any of them.
    for address in sorted(addresses):
        if family_of(address) is port.family:
            yield msgspec.structs.replace(frontend, address=address)


def _is_node_port(frontend: Frontend) -> bool:
    return frontend.scope is _NODE_PORT and not frontend.address


def _expanded(port: PortRouting, addresses: Collection[Address]) -> PortRouting:
    own = [address for address in sorted(addresses) if family_of(address) is port.family]
    node_ports = [each for each in port.frontends if _is_node_port(each)]
    expanded = {(address, each.port): each for each in node_ports for address in own}
    kept: list[Frontend] = []
    for each in port.frontends:
        if _is_node_port(each):
            continue
        place = (each.address, each.port)
        # An external IP may be an address of this node.
        if place not in expanded:
            kept.append(each)
        elif each.scope is not _EXTERNAL_IP:
            kept.append(each)
            del expanded[place]
    kept += [
        msgspec.structs.replace(each, address=address) for (address, _), each in expanded.items()
    ]
    return msgspec.structs.replace(port, frontends=tuple(kept))
