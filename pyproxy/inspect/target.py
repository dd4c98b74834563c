"""What a person asks about: a Service by name, or an address and port that a client would use."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from pyproxy.errors import UsageError
from pyproxy.inspect.services import object_name
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.model.address import Address, Port, Protocol, address_text, parse_address
from pyproxy.model.objects import ObjectName, Service

_TARGET = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[\d.]+)):(?P<port>\d+)(?:/(?P<protocol>\w+))?")


class Destination(msgspec.Struct, frozen=True):
    """Where a client sends to."""

    address: Address
    port: Port
    protocol: Protocol

    def __str__(self) -> str:
        text = address_text(self.address)
        host = f"[{text}]" if ":" in text else text
        return f"{host}:{self.port}/{self.protocol.name.lower()}"


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
    found = _TARGET.fullmatch(text)
    if found is None:
        if ":" in text:
            raise UsageError(f"{text!r}: write ADDRESS:PORT, ADDRESS:PORT/udp, or NAMESPACE/NAME")
        return object_name(text)
    protocols = {each.name.lower(): each for each in Protocol}
    protocol = protocols.get((found["protocol"] or "tcp").lower())
    try:
        address = parse_address(found["v6"] or found["v4"])
    except ValueError as error:
        raise UsageError(str(error)) from error
    if protocol is None or not 0 < int(found["port"]) < 65536:
        raise UsageError(f"{text!r}: no such port: use 1 to 65535, and /tcp, /udp or /sctp")
    return Destination(address, Port(int(found["port"])), protocol)


def resolve(snapshot: Snapshot, text: str) -> Resolved:
    """Find the Service that a question is about. Raises UsageError."""
    target = parse(text)
    if isinstance(target, ObjectName):
        return Resolved(target)
    for answer in snapshot.answers.values():
        for port in answer.ports:
            for f in port.frontends:
                if (f.address, f.port, port.protocol) == (
                    target.address,
                    target.port,
                    target.protocol,
                ):
                    return Resolved(answer.name, target, why=f"a {f.scope.value} of it")
    return next(_near_misses(snapshot, target), Resolved(None, target, answered=False))


def _near_misses(snapshot: Snapshot, target: Destination) -> Iterator[Resolved]:
    """Find who might have been meant; the likeliest first."""
    for service in snapshot.services.values():
        if target.address in _addresses(service):
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
            addresses = snapshot.node_answer.node_port_addresses
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


def _addresses(service: Service) -> tuple[Address, ...]:
    return service.cluster_ips + service.external_ips + service.load_balancer_ips
