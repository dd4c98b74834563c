"""The target of an explanation: a Service name, or the address and port that a client uses."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pyproxy.errors import UsageError
from pyproxy.inspect.services import object_name
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.model.address import Address, Port, Protocol, address_text, family_of
from pyproxy.model.destination import Destination, parse_destination
from pyproxy.model.objects import ObjectName, Service
from pyproxy.policy.routing import Frontend


class Target(msgspec.Struct, frozen=True):
    """A Service, and the destination if the user gave one.

    `name` is None if no Service has the destination. `served` is true if this node serves the
    destination; then `scope` is its kind of address, else `reason` and `fix` say why not.
    """

    name: ObjectName | None
    destination: Destination | None = None
    served: bool = True
    scope: str = ""
    reason: str = ""
    fix: str = ""


def parse(text: str) -> ObjectName | Destination:
    """Parse NAMESPACE/NAME, ADDRESS:PORT or ADDRESS:PORT/PROTOCOL. Raises UsageError."""
    # Kubernetes names have no colon, and every destination has one before its port.
    if ":" not in text:
        return object_name(text)
    try:
        return parse_destination(text)
    except ValueError as error:
        raise UsageError(f"{error}, or NAMESPACE/NAME for a Service") from error


def resolve(snapshot: Snapshot, text: str) -> Target:
    """Return the Service of a target. Raises UsageError if the text cannot be parsed."""
    target = parse(text)
    if isinstance(target, ObjectName):
        return Target(target)
    found = frontend_of(snapshot, target.address, target.port, target.protocol)
    if found is not None:
        return Target(found[0], target, scope=found[1].scope.value)
    return next(_candidates(snapshot, target), Target(None, target, served=False))


def frontend_of(
    snapshot: Snapshot, address: Address, number: Port, protocol: Protocol
) -> tuple[ObjectName, Frontend] | None:
    """Return the Service and the frontend of a destination; None if no Service is served there."""
    # A frontend with this address precedes a node port.
    at_node = snapshot.node_routing.has_node_ports(address)
    family = family_of(address)
    node_port = None
    # A scan, because an index would cost the agent memory for a query that is rare.
    for routing in snapshot.routings.values():
        for port in routing.ports:
            for f in port.frontends:
                if (f.port, port.protocol, port.family) == (number, protocol, family):
                    if f.address == address:
                        return routing.name, f
                    if at_node and not f.address:
                        node_port = routing.name, f
    return node_port


def _candidates(snapshot: Snapshot, target: Destination) -> Iterator[Target]:
    """Yield the Services that have a part of an unserved destination, the likeliest first."""
    for service in snapshot.services.values():
        if _has_address(service, target.address):
            if any(_same_port(port.port, port.protocol, target) for port in service.ports):
                yield Target(
                    service.name,
                    target,
                    served=False,
                    reason=f"{service.name} has it, but this node does not serve it",
                )
                continue
            ports = ", ".join(f"{p.port}/{p.protocol.name.lower()}" for p in service.ports)
            yield Target(
                service.name,
                target,
                served=False,
                reason=f"{service.name} has the address, but only the ports {ports}",
                fix=f"connect to one of the ports {ports}, or add this port to spec.ports",
            )
    # Node ports are unique in the cluster, so the address does not matter here.
    for service in snapshot.services.values():
        if any(_same_port(port.node_port, port.protocol, target) for port in service.ports):
            node_ports = snapshot.node_routing.node_port_addresses
            addresses = ", ".join(map(address_text, node_ports)) or "no address"
            yield Target(
                service.name,
                target,
                served=False,
                reason=f"it is the node port of {service.name}, which this node serves on "
                f"{addresses} only",
                fix=f"connect to {addresses}, or include this address in --nodeport-addresses",
            )


def _same_port(number: int, protocol: Protocol, target: Destination) -> bool:
    return (number, protocol) == (target.port, target.protocol)


def _has_address(service: Service, address: Address) -> bool:
    return (
        address in service.cluster_ips
        or address in service.external_ips
        or address in service.load_balancer_ips
    )
