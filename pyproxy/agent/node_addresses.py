"""The addresses that this machine's interfaces have, and when they change."""

from __future__ import annotations

import errno
import socket
from contextlib import closing

import msgspec

from pyproxy.dataplane.modes import MODES
from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family, parse_address
from pyproxy.netlink import rtnetlink
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.sockets import NETLINK_ROUTE

# Test addresses: nothing is sent, the kernel only says which source it would take.
_TOWARDS = {
    Family.IPV4: parse_address("192.0.2.1"),
    Family.IPV6: parse_address("2001:db8::1"),
}
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV, errno.EACCES)


def local_addresses() -> tuple[Address, ...]:
    """List all addresses but link-local ones, what the default route would use first.

    Those of Services, which IPVS needs on a device, are not the machine's.

    Raises KernelError.
    """
    with closing(Requests(NETLINK_ROUTE)) as kernel:
        ways = [way for towards in _TOWARDS.values() if (way := _way(kernel, towards))]
        outward = [way.source for way in ways if way.source is not None]
        names = [mode.device for mode in MODES.values() if mode.device]
        devices = {rtnetlink.find_device(kernel, name) for name in names} - {0}
        found = [
            each.address
            for each in rtnetlink.read_addresses(kernel.dump(rtnetlink.get_addresses()))
            if each.device not in devices
        ]
    return tuple(dict.fromkeys([*outward, *found]))


class Route(msgspec.Struct, frozen=True):
    """How this machine sends to an address: by which interface, and as whom.

    `here` says that the address is one of its own.
    """

    interface: str
    source: Address
    here: bool


def route_to(address: Address) -> Route | None:
    """Ask the kernel for its route; None where it has none. Raises KernelError."""
    with closing(Requests(NETLINK_ROUTE)) as kernel:
        way = _way(kernel, address)
    if way is None:
        return None
    try:
        interface = socket.if_indextoname(way.device)
    except OSError as error:
        raise kernel_error(error.errno or 0, "asking for a route") from error
    return Route(interface, way.source or address, way.local)


def _way(kernel: Requests, address: Address) -> rtnetlink.Route | None:
    try:
        return rtnetlink.read_route(kernel.get(rtnetlink.get_route(address)))
    except KernelError as error:
        if error.errno in _NO_ROUTE:
            return None
        raise
