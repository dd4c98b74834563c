"""Addresses, network devices and routes over rtnetlink, and notifications of address changes.

Facts: include/uapi/linux/if_addr.h and rtnetlink.h, rtnetlink(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

import msgspec

from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family, Network, family_of
from pyproxy.netlink.attributes import attribute, attribute_map, string, text
from pyproxy.netlink.frames import HEADER, NLM_F_CREATE, NLM_F_EXCL, read_messages
from pyproxy.netlink.requests import Request, Requests
from pyproxy.netlink.sockets import NETLINK_ROUTE, NetlinkSocket

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_GETROUTE = 26
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFLA_IFNAME = 3
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_RTN_LOCAL = 2
_SCOPE_LINK = 253
_NODAD, _NOPREFIXROUTE = 0x02, 0x200
# Duplicate address detection would leave an IPv6 address tentative at first, and the kernel would
# add a route to the /128 through the device.
_FLAGS = attribute(_IFA_FLAGS, struct.pack("=I", _NODAD | _NOPREFIXROUTE))

_IFADDRMSG = struct.Struct("=BBBBI")
_IFINFOMSG = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NUMBER = struct.Struct("=I")
_AF = {Family.IPV4: int(socket.AF_INET), Family.IPV6: int(socket.AF_INET6)}
# RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR.
_GROUPS = 0x1 | 0x10 | 0x100
"""Links, and addresses of both families."""

_RECEIVE_BUFFER = 1 << 18


class DeviceAddress(msgspec.Struct, frozen=True):
    """An address, and the index of the device that has it."""

    device: int
    address: Address


class Route(msgspec.Struct, frozen=True):
    """The index of the outgoing device, and the source address, None if the kernel names none.

    `local` says that the destination is an address of this node.
    """

    device: int
    source: Address | None
    local: bool


def add_address(device: int, address: Address) -> Request:
    """Add an address to a device, without a route to a network; EEXIST if the device has it."""
    return Request(_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, _pack_address(device, address))


def delete_address(device: int, address: Address) -> Request:
    """Delete an address from a device; EADDRNOTAVAIL if the device does not have it."""
    return Request(_DELADDR, 0, _pack_address(device, address))


def is_already_done(number: int) -> bool:
    """Return whether an errno says that an address was added, or deleted, before."""
    return number in (errno.EEXIST, errno.EADDRNOTAVAIL)


def get_addresses() -> Request:
    """Request the addresses of all devices."""
    return Request(_GETADDR, 0, _IFADDRMSG.pack(0, 0, 0, 0, 0))


def read_addresses(replies: Iterable[memoryview]) -> list[DeviceAddress]:
    """Read the replies to `get_addresses`, without link-local addresses."""
    found = []
    for reply in replies:
        if len(reply) < _IFADDRMSG.size:
            continue
        _, _, _, scope, device = _IFADDRMSG.unpack_from(reply)
        if scope == _SCOPE_LINK:
            continue
        fields = attribute_map(reply[_IFADDRMSG.size :])
        # On a point-to-point device IFA_ADDRESS is the peer's address.
        value = bytes(fields.get(_IFA_LOCAL, fields.get(_IFA_ADDRESS, b"")))
        if len(value) in (4, 16):
            found.append(DeviceAddress(device, Address(value)))
    return found


def read_broadcasts(replies: Iterable[memoryview]) -> frozenset[Address]:
    """Read the broadcast addresses of all networks from the replies to `get_addresses`.

    The kernel has the last address of a network shorter than /31 as one, even if the address was
    added without it (fib_add_ifaddr in net/ipv4/fib_frontend.c).
    """
    found = set()
    for reply in replies:
        if len(reply) < _IFADDRMSG.size:
            continue
        family, prefix, _, _, _ = _IFADDRMSG.unpack_from(reply)
        if family != _AF[Family.IPV4]:
            continue
        fields = attribute_map(reply[_IFADDRMSG.size :])
        if len(named := bytes(fields.get(_IFA_BROADCAST, b""))) == 4:
            found.add(Address(named))
        # On a point-to-point device this is the peer's address, and the network is the peer's too.
        address = bytes(fields.get(_IFA_ADDRESS, b""))
        if prefix < 31 and len(address) == 4:
            found.add(Network(Address(address), prefix).last)
    return frozenset(found)


def get_route(address: Address) -> Request:
    """Request the route to an address; ENETUNREACH or EHOSTUNREACH if there is none."""
    family = family_of(address)
    head = _RTMSG.pack(_AF[family], family.bits, 0, 0, 0, 0, 0, 0, 0)
    return Request(_GETROUTE, 0, head + attribute(_RTA_DST, address))


def read_route(replies: Iterable[memoryview]) -> Route | None:
    """Read the reply to `get_route`; None if it is cut short."""
    for reply in replies:
        if len(reply) < _RTMSG.size:
            continue
        kind = _RTMSG.unpack_from(reply)[7]
        fields = attribute_map(reply[_RTMSG.size :])
        source = bytes(fields.get(_RTA_PREFSRC, b""))
        device = fields.get(_RTA_OIF, b"")
        return Route(
            _NUMBER.unpack(device)[0] if len(device) == _NUMBER.size else 0,
            Address(source) if len(source) in (4, 16) else None,
            kind == _RTN_LOCAL,
        )
    return None


def find_device(kernel: Requests, name: str) -> int:
    """Return the index of a device, 0 if there is none of this name. Raises KernelError."""
    try:
        replies = kernel.get(
            Request(_GETLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0) + string(_IFLA_IFNAME, name))
        )
    except KernelError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT):
            return 0
        raise
    # An alternative name (altname) also finds a device, so its primary name is compared.
    for reply in replies:
        if len(reply) < _IFINFOMSG.size:
            continue
        _, _, index, _, _ = _IFINFOMSG.unpack_from(reply)
        if text(attribute_map(reply[_IFINFOMSG.size :]).get(_IFLA_IFNAME, memoryview(b""))) == name:
            return int(index)
    return 0


class AddressMonitor:
    """Detects changes of addresses, and of one device, by rtnetlink's notifications.

    `own_port` is the socket whose changes do not count.
    """

    def __init__(self, own_port: int | None = None) -> None:
        self._own_port = own_port
        self._socket = NetlinkSocket(NETLINK_ROUTE, "addresses", _RECEIVE_BUFFER, _GROUPS)

    def changed(self, device: int = 0) -> bool:
        """Return whether an address, or the device of this index, changed since the last call.

        It does not block. Lost notifications count as a change. Raises KernelError.
        """
        datagrams, lost = self._socket.read_notifications()
        return lost or any(
            self._is_change(kind, port, message[HEADER.size :], device)
            for data in datagrams
            for kind, _, _, port, message in read_messages(data)
        )

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _is_change(self, kind: int, port: int, body: memoryview, device: int) -> bool:
        # Only IPv4 notifications name the sender: those of IPv6 addresses have port 0 (addrconf.c).
        if port == self._own_port:
            return False
        if kind in (_NEWADDR, _DELADDR):
            return True
        if kind in (_NEWLINK, _DELLINK) and len(body) >= _IFINFOMSG.size:
            return bool(_IFINFOMSG.unpack_from(body)[2] == device)
        return False


def _pack_address(device: int, address: Address) -> bytes:
    family = family_of(address)
    head = _IFADDRMSG.pack(_AF[family], family.bits, 0, 0, device)
    # IPv4 requires IFA_LOCAL. An IFA_ADDRESS that differs would be a peer's address.
    return head + attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address) + _FLAGS
