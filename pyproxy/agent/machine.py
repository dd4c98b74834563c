"""The addresses that this machine's interfaces have, and when they change."""

from __future__ import annotations

import errno
import socket
from contextlib import closing

import msgspec

from pyproxy.dataplane.ipvs.schema import DEVICE
from pyproxy.errors import KernelError
from pyproxy.model.address import Address, parse_address
from pyproxy.netlink import addresses, routes
from pyproxy.netlink.nfnetlink import kernel_error
from pyproxy.netlink.requests import NETLINK_ROUTE, Requests

_OUTSIDE = (parse_address("192.0.2.1"), parse_address("2001:db8::1"))
"""Addresses of documentation, one of each family, which only a default route leads to."""

_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV, errno.EACCES)


def local_addresses() -> tuple[Address, ...]:
    """List all addresses but link-local ones, what the default route would use first.

    Those of Services, which IPVS needs on a device, are not the machine's.

    Raises KernelError.
    """
    with closing(Requests(NETLINK_ROUTE)) as kernel:
        # Nothing is sent to these: the kernel only says which source it would take.
        towards = [_route(kernel, address) for address in _OUTSIDE]
        ours = addresses.device_number(kernel, DEVICE)
        found = addresses.addresses(kernel.dump(addresses.get_addresses()))
    outward = [route.source for route in towards if route is not None and route.source]
    rest = [each.address for each in found if not ours or each.device != ours]
    return tuple(dict.fromkeys([*outward, *rest]))


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
        found = _route(kernel, address)
    if found is None:
        return None
    try:
        interface = socket.if_indextoname(found.device)
    except OSError as error:
        raise kernel_error(error.errno or 0, "asking for a route") from error
    return Route(interface, found.source or address, found.local)


def _route(kernel: Requests, address: Address) -> routes.Route | None:
    try:
        return routes.route(kernel.ask(routes.get_route(address)))
    except KernelError as error:
        if error.errno in _NO_ROUTE:
            return None
        raise


class AddressWatch:
    """Tells whether any address has come or gone, by the kernel's own notifications."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))

    def changed(self) -> bool:
        """Tell whether one has since the last call; waits for nothing."""
        heard = False
        while True:
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return heard
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more notifications than room for them
                    raise kernel_error(error.errno or 0, "listening for addresses") from error
            heard = True

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()
