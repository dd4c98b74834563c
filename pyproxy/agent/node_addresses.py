"""The addresses of this machine's interfaces, and its routes."""

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

# Documentation addresses match the default route alone. RTM_GETROUTE returns the source address
# that the kernel would select, and sends no packet.
_TOWARDS = {
    Family.IPV4: parse_address("192.0.2.1"),
    Family.IPV6: parse_address("2001:db8::1"),
}
# ENETUNREACH: no route matches. EHOSTUNREACH and EACCES: the route has the type unreachable or
# prohibit.
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV, errno.EACCES)


class LocalAddresses:
    """Reads this machine's addresses over one socket, so that a sync needs no new descriptor.

    The network namespace is that in which this is made. One thread at a time. Raises KernelError.
    """

    def __init__(self) -> None:
        self._kernel = Requests(NETLINK_ROUTE)

    def read(self) -> tuple[Address, ...]:
        """Return all addresses but link-local ones, those of the default routes first.

        Leaves out Service addresses, which ipvs mode has on a device. Blocks for a few requests.
        """
        kernel = self._kernel
        ways = [way for towards in _TOWARDS.values() if (way := _way(kernel, towards))]
        outward = [way.source for way in ways if way.source is not None]
        # ipvs mode has every Service address on kube-ipvs0, and none of them is for node ports.
        names = [mode.device for mode in MODES.values() if mode.device]
        devices = {rtnetlink.find_device(kernel, name) for name in names} - {0}
        found = [
            each.address
            for each in rtnetlink.read_addresses(kernel.dump(rtnetlink.get_addresses()))
            if each.device not in devices
        ]
        return tuple(dict.fromkeys([*outward, *found]))

    def broadcasts(self) -> frozenset[Address]:
        """Return the broadcast addresses of this machine's networks. Blocks for one request."""
        return rtnetlink.read_broadcasts(self._kernel.dump(rtnetlink.get_addresses()))

    def close(self) -> None:
        """Close the socket."""
        self._kernel.close()


def local_addresses() -> tuple[Address, ...]:
    """Return the addresses that `LocalAddresses` reads, once. Raises KernelError."""
    with closing(LocalAddresses()) as opened:
        return opened.read()


def broadcast_addresses() -> frozenset[Address]:
    """Return the addresses of `LocalAddresses.broadcasts`, once. Raises KernelError."""
    with closing(LocalAddresses()) as opened:
        return opened.broadcasts()


class Route(msgspec.Struct, frozen=True):
    """A route of this machine: the interface and the source address.

    `here` says that the destination is an address of this machine.
    """

    interface: str
    source: Address
    here: bool


def route_to(address: Address) -> Route | None:
    """Return the kernel's route to an address, None without one. Raises KernelError."""
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
