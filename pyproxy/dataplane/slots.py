"""Which slot each endpoint has: as few as possible change when endpoints come and go."""

from __future__ import annotations

import msgspec

from pyproxy.model.address import Backend
from pyproxy.policy.routing import PortRouting, ServiceRouting


def place(before: tuple[Backend, ...], wanted: tuple[Backend, ...]) -> tuple[Backend, ...]:
    """Order `wanted` so that it differs from `before` in as few places as it can.

    Slots are without gaps. Whoever stays keeps its slot, unless that lies beyond the new end; the
    others fill what has become free. `before` may be what somebody else wrote into the kernel: of
    a backend that is there twice the first slot counts.
    """
    if before == wanted or not before:
        return wanted
    waiting = dict.fromkeys(wanted, True)
    slots = [each if waiting.pop(each, False) else None for each in before[: len(wanted)]]
    movers = iter(waiting)
    filled = [each if each is not None else next(movers) for each in slots]
    return (*filled, *movers)


def place_service(before: ServiceRouting | None, wanted: ServiceRouting) -> ServiceRouting:
    """Order the backends of all of a Service's ports, each by the same port as it was."""
    if before is None:
        return wanted
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
    )
