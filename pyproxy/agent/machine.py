"""The addresses that this machine's interfaces have, and when they change."""

from __future__ import annotations

import errno
import socket

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from pyproxy.dataplane.ipvs.schema import DEVICE
from pyproxy.model.address import Address, Family, address_text, family_of, parse_address
from pyproxy.netlink.refusals import kernel_error
from pyproxy.netlink.sockets import NETLINK_ROUTE, NetlinkSocket

_AF = {Family.IPV4: 2, Family.IPV6: 10}
_TOWARDS = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}
_LINK_SCOPE = 253
_ROOM = 1 << 18
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_RTN_LOCAL = 2
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV, errno.EACCES)


def local_addresses() -> tuple[Address, ...]:
    """List all addresses but link-local ones, what the default route would use first.

    Those of Services, which IPVS needs on a device, are not the machine's.

    Raises KernelError.
    """
    try:
        with IPRoute() as routes:
            outward = [text for family in Family if (text := _towards_the_world(routes, family))]
            # Of an interface to a single peer, IFA_ADDRESS is the peer's.
            ours = set(routes.link_lookup(ifname=DEVICE))
            found = [
                str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
                for message in routes.get_addr()
                if message["scope"] != _LINK_SCOPE and message["index"] not in ours
            ]
    except NetlinkError as error:
        raise kernel_error(error.code, "listing addresses") from error
    except OSError as error:
        raise kernel_error(error.errno or 0, "listing addresses") from error
    return tuple(parse_address(text) for text in dict.fromkeys([*outward, *found]))


class Route(msgspec.Struct, frozen=True):
    """How this machine sends to an address: by which interface, and as whom.

    `here` says that the address is one of its own.
    """

    interface: str
    source: Address
    here: bool


def route_to(address: Address) -> Route | None:
    """Ask the kernel for its route; None where it has none. Raises KernelError."""
    try:
        with IPRoute() as routes:
            answers = routes.route("get", dst=address_text(address), family=_AF[family_of(address)])
            answer = next(iter(answers))
            interface = socket.if_indextoname(answer.get_attr("RTA_OIF"))
    except NetlinkError as error:
        if error.code in _NO_ROUTE:
            return None
        raise kernel_error(error.code, "asking for a route") from error
    except OSError as error:
        raise kernel_error(error.errno or 0, "asking for a route") from error
    source = parse_address(str(answer.get_attr("RTA_PREFSRC") or address_text(address)))
    return Route(interface, source, answer["type"] == _RTN_LOCAL)


def _towards_the_world(routes: IPRoute, family: Family) -> str:
    # A test address: nothing is sent, the kernel only says which source it would take.
    try:
        answers = routes.route("get", dst=_TOWARDS[family], family=_AF[family])
    except NetlinkError as error:
        if error.code in _NO_ROUTE:
            return ""
        raise kernel_error(error.code, "asking for the default route") from error
    return next((str(a.get_attr("RTA_PREFSRC") or "") for a in answers), "")


class AddressWatch:
    """Tells whether any address has come or gone, by the kernel's own notifications."""

    def __init__(self) -> None:
        groups = _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR
        self._socket = NetlinkSocket(NETLINK_ROUTE, "addresses", _ROOM, groups)

    def changed(self) -> bool:
        """Tell whether one has since the last call; waits for nothing."""
        told, lost = self._socket.heard()
        return bool(told) or lost

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()
