"""Slots of endpoints: as few as possible change when endpoints are added and removed."""

from __future__ import annotations

import msgspec

from pyproxy.model.address import Backend
from pyproxy.policy.routing import PortRouting, ServiceRouting


def place(before: tuple[Backend, ...], wanted: tuple[Backend, ...]) -> tuple[Backend, ...]:
    """Return `wanted` in the order that differs from `before` in as few places as possible.

    Slots have no gaps. An endpoint that remains keeps its slot, unless that is beyond the new end,
    and new endpoints fill the free slots. `before` may have been written by another program: of an
    endpoint that is in it twice, the first slot counts.
    """
    if before == wanted or not before:
        return wanted
    # A dict and not a set: new endpoints keep policy's order, so equal input gives an equal plan.
    waiting = dict.fromkeys(wanted, True)
    slots = [each if waiting.pop(each, False) else None for each in before[: len(wanted)]]
    new = iter(waiting)
    filled = [each if each is not None else next(new) for each in slots]
    return (*filled, *new)


def place_service(before: ServiceRouting | None, wanted: ServiceRouting) -> ServiceRouting:
    """Return a Service with the endpoints of each port in the order of the same port before."""
    if before is None:
        return wanted
    # Kubernetes requires unique names if a Service has several ports; a port's number may change.
    old = {(port.family, port.protocol, port.name): port for port in before.ports}
    ports = tuple(
        _place_port(old.get((port.family, port.protocol, port.name)), port) for port in wanted.ports
    )
    return msgspec.structs.replace(wanted, ports=ports)


def _place_port(before: PortRouting | None, wanted: PortRouting) -> PortRouting:
    if before is None:
        return wanted
    return PortRouting(
        wanted.name,
        wanted.family,
        wanted.protocol,
        wanted.frontends,
        place(before.cluster, wanted.cluster),
        place(before.local, wanted.local),
        wanted.hairpin,
        wanted.draining,
        wanted.fallback,
    )
