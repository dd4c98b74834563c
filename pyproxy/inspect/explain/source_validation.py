"""Packets that the kernel drops for their source (rp_filter), told from those without a route."""

from __future__ import annotations

import errno

import msgspec

from pyproxy.hostnet.packet import Origin
from pyproxy.hostnet.routes import PathRoutes, RouteFacts
from pyproxy.hostnet.switches import SwitchFacts
from pyproxy.model.address import Address, Family
from pyproxy.netlink.routing import RouteReply

# Linux 6.14 and later return EINVAL for each cause, earlier ones EXDEV for rp_filter.
_ERRORS = (errno.EXDEV, errno.EINVAL)
_STRICT = 1


class Rejected(msgspec.Struct, frozen=True):
    """A source that rp_filter rejects on a device, and the device of the route back to it."""

    source: Address
    device: str
    strict: bool
    back: str


def rejected_by_rp_filter(
    each: PathRoutes, routes: RouteFacts, switches: SwitchFacts
) -> Rejected | None:
    """Return the source of a path's packet, or of its reply, that rp_filter rejects."""
    leaving = each.path.leaving
    if leaving.family is Family.IPV6:
        return None
    received = each.path.origin is not Origin.NODE and each.reverse is not None
    # The packet was refused as received, but not as this node's own.
    if received and each.forward.error in _ERRORS and not each.plain.error:
        if leaving.sample and leaving.in_device and each.reverse:
            return _rejected(leaving.sample, leaving.in_device, each.reverse, routes, switches)
        return None
    if each.back and each.back.error in _ERRORS and leaving.out_device:
        return _rejected(leaving.destination, leaving.out_device, each.plain, routes, switches)
    return None


def _rejected(
    source: Address, device: str, route: RouteReply, routes: RouteFacts, switches: SwitchFacts
) -> Rejected | None:
    mode = switches.strongest(device, "rp_filter")
    back = "" if route.error else routes.devices.name(route.device)
    if not mode or (mode != _STRICT and back) or back == device:
        return None
    return Rejected(source, device, mode == _STRICT, back)
