"""The addresses that this machine has for its own, and its routes.

The kernel delivers a packet here if the table local has a route of type local for its destination.
Such a route exists for each address of an interface, and `ip route add local` adds others, as
agents for load balancers do. An interface in a VRF has its routes in the VRF's table.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing

import msgspec

from pyproxy.dataplane.modes import MODES
from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family, Network, parse_address, parse_network
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
# prohibit. EOPNOTSUPP and EAFNOSUPPORT: the kernel has no IPv6.
_NO_ROUTE = (
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENODEV,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.EAFNOSUPPORT,
)
# RFC 3927; RFC 4291, 2.5.6. The kernel's scope "link" is something else: any address may have it.
_LINK_LOCAL_4 = parse_address("169.254.0.0")
_LOOPBACK = parse_network("127.0.0.0/8")
MOST_IN_NETWORKS = 1024
"""Addresses of local routes to networks that are listed; single addresses have no limit."""


class LocalAddresses:
    """Reads this machine's addresses over one socket, so that a sync needs no new descriptor.

    The network namespace is that in which this is made. One thread at a time. Raises KernelError.
    """

    def __init__(self) -> None:
        self._kernel = Requests(NETLINK_ROUTE)
        self._kernel.filter_dumps()
        self.service_devices: frozenset[int] = frozenset()
        """The devices, at the last `read`, whose addresses are Services' and not the node's."""
        self._too_large: tuple[Network, ...] = ()
        self._broadcasts: frozenset[Address] = frozenset()

    def read(self) -> tuple[Address, ...]:
        """Return all addresses but link-local ones, those of the default routes first.

        Leaves out Service addresses, which ipvs mode has on a device. Blocks for six requests.
        """
        kernel = self._kernel
        ways = [way for towards in _TOWARDS.values() if (way := _way(kernel, towards))]
        outward = [way.source for way in ways if way.source is not None]
        # ipvs mode has every Service address on kube-ipvs0, and none of them is for node ports.
        names = [mode.device for mode in MODES.values() if mode.device]
        devices = frozenset(rtnetlink.find_device(kernel, name) for name in names) - {0}
        self.service_devices = devices
        replies = kernel.dump(rtnetlink.get_addresses())
        self._broadcasts = rtnetlink.read_broadcasts(replies)
        on_interfaces = [
            each.address
            for each in rtnetlink.read_addresses(replies)
            if each.is_unique and each.device not in devices
        ]
        routes = [
            route.network
            for family in Family
            for route in _local_routes(kernel, family)
            if route.device not in devices
        ]
        found = dict.fromkeys([*outward, *on_interfaces, *self._expanded(routes)])
        return tuple(address for address in found if not is_link_local(address))

    def broadcasts(self) -> frozenset[Address]:
        """Return the broadcast addresses of this machine's networks at the last `read`."""
        return self._broadcasts

    def large_networks(self) -> tuple[Network, ...]:
        """Return the local routes whose addresses the last `read` left out as too many."""
        return self._too_large

    def close(self) -> None:
        """Close the socket."""
        self._kernel.close()

    def _expanded(self, networks: Iterable[Network]) -> Iterator[Address]:
        left, too_large = MOST_IN_NETWORKS, set()
        # Smaller networks first, so that a large one does not displace a single address.
        for network in sorted(networks, key=lambda each: -each.prefix):
            first, last = (int.from_bytes(each, "big") for each in (network.address, network.last))
            count = last - first + 1
            if count == 1:
                yield network.address
            elif count <= left:
                left -= count
                length = len(network.address)
                yield from (Address(n.to_bytes(length, "big")) for n in range(first, last + 1))
            elif network != _LOOPBACK and not is_link_local(network.address):
                too_large.add(network)
        self._too_large = tuple(sorted(too_large))


def is_link_local(address: Address) -> bool:
    """Return whether an address is in 169.254.0.0/16 or fe80::/10."""
    # Compared as bytes, because a node may have a thousand addresses.
    if len(address) == len(_LINK_LOCAL_4):
        return address[:2] == _LINK_LOCAL_4[:2]
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def local_addresses() -> tuple[Address, ...]:
    """Return the addresses that `LocalAddresses` reads, once. Raises KernelError."""
    with closing(LocalAddresses()) as opened:
        return opened.read()


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


def _local_routes(kernel: Requests, family: Family) -> list[rtnetlink.LocalRoute]:
    try:
        replies = kernel.dump(rtnetlink.get_local_routes(family))
    except KernelError as error:
        # ENOENT: no address has been added in this namespace yet, so the table does not exist.
        if error.errno in (errno.ENOENT, *_NO_ROUTE):
            return []
        raise
    return rtnetlink.read_local_routes(replies, family)


def _way(kernel: Requests, address: Address) -> rtnetlink.Route | None:
    try:
        return rtnetlink.read_route(kernel.get(rtnetlink.get_route(address)))
    except KernelError as error:
        if error.errno in _NO_ROUTE:
            return None
        raise
