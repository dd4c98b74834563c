"""What a person asks about: a Service by name, or an address and port that a client would use."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pyproxy.errors import UsageError
from pyproxy.inspect.services import object_name
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.model.address import Address, Protocol, address_text
from pyproxy.model.destination import Destination, parse_destination
from pyproxy.model.objects import ObjectName, Service


class Resolved(msgspec.Struct, frozen=True):
    """Which Service a question is about; `why` says how that is known, or what is wrong with it.

    `name` is None where no Service has anything to do with the destination.
    """

    name: ObjectName | None
    destination: Destination | None = None
    answered: bool = True
    why: str = ""
    fix: str = ""


def parse(text: str) -> ObjectName | Destination:
    """Read NAMESPACE/NAME, ADDRESS:PORT or ADDRESS:PORT/PROTOCOL. Raises UsageError."""
    if ":" not in text:
        return object_name(text)
    try:
        return parse_destination(text)
    except ValueError as error:
        raise UsageError(f"{error}, or NAMESPACE/NAME for a Service") from error


def resolve(snapshot: Snapshot, text: str) -> Resolved:
    """Find the Service that a question is about. Raises UsageError."""
    target = parse(text)
    if isinstance(target, ObjectName):
        return Resolved(target)
    for routing in snapshot.routings.values():
        for port in routing.ports:
            for f in port.frontends:
                if f.address == target.address and _is(f.port, port.protocol, target):
                    return Resolved(routing.name, target, why=f"a {f.scope.value} of it")
    return next(_near_misses(snapshot, target), Resolved(None, target, answered=False))


def _near_misses(snapshot: Snapshot, target: Destination) -> Iterator[Resolved]:
    """Find who might have been meant; the likeliest first."""
    for service in snapshot.services.values():
        if _has(service, target.address):
            if any(_is(port.port, port.protocol, target) for port in service.ports):
                yield Resolved(
                    service.name, target, answered=False, why="it has it, and this node does not"
                )
                continue
            ports = ", ".join(f"{p.port}/{p.protocol.name.lower()}" for p in service.ports)
            yield Resolved(
                service.name,
                target,
                answered=False,
                why=f"the address is its own, and it has no such port, but {ports}",
                fix=f"connect to one of its ports, {ports}, or add this one to spec.ports",
            )
    for service in snapshot.services.values():
        if any(_is(port.node_port, port.protocol, target) for port in service.ports):
            addresses = snapshot.node_routing.node_port_addresses
            told = ", ".join(map(address_text, addresses)) or "none"
            yield Resolved(
                service.name,
                target,
                answered=False,
                why=f"it is its node port, which this node answers on {told} alone",
                fix=f"connect to {told}, or have --nodeport-addresses include this address",
            )


def _is(number: int, protocol: Protocol, target: Destination) -> bool:
    return (number, protocol) == (target.port, target.protocol)


def _has(service: Service, address: Address) -> bool:
    return (
        address in service.cluster_ips
        or address in service.external_ips
        or address in service.load_balancer_ips
    )
