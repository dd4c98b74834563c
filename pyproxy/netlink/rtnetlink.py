"""Addresses, network devices and routes over rtnetlink.

Facts: include/uapi/linux/if_addr.h and rtnetlink.h, rtnetlink(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping

import msgspec

from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family, Network, family_of
from pyproxy.netlink.attributes import attribute, attribute_map, nested, string, text
from pyproxy.netlink.frames import NLM_F_CREATE, NLM_F_EXCL
from pyproxy.netlink.requests import Request, Requests

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_GETROUTE = 26
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_IFALIAS = 3, 18, 20
_IFLA_INFO_KIND = 1
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
RT_TABLE_LOCAL = 255
"""The table of the node's own addresses, which the kernel looks up first."""

RTN_LOCAL = 2
"""The type of a route whose packets this node receives, whatever its scope."""

_NODAD, _NOPREFIXROUTE = 0x02, 0x200
_OPTIMISTIC, _DAD_FAILED, _TENTATIVE = 0x04, 0x08, 0x40
# Duplicate address detection would leave an IPv6 address tentative at first, and the kernel would
# add a route to the /128 through the device.
_FLAGS = attribute(_IFA_FLAGS, struct.pack("=I", _NODAD | _NOPREFIXROUTE))

_IFADDRMSG = struct.Struct("=BBBBI")
_IFINFOMSG = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NUMBER = struct.Struct("=I")
_AF = {Family.IPV4: int(socket.AF_INET), Family.IPV6: int(socket.AF_INET6)}


class DeviceAddress(msgspec.Struct, frozen=True):
    """An address, and the index of the device that has it.

    `is_unique` says that no duplicate address detection is under way or has failed. Until then
    the address may belong to another machine, and the kernel has no local route for it.
    """

    device: int
    address: Address
    is_unique: bool = True


class Link(msgspec.Struct, frozen=True):
    """A network device: its index, above 0, and its alias, a text that is empty without one."""

    index: int
    alias: str


class LocalRoute(msgspec.Struct, frozen=True):
    """A network whose addresses are all the node's own, and the index of the route's device."""

    device: int
    network: Network


class Route(msgspec.Struct, frozen=True):
    """The index of the outgoing device, and the source address, None if the kernel names none.

    `local` says that the destination is an address of this node.
    """

    device: int
    source: Address | None
    local: bool


def add_dummy_device(name: str) -> Request:
    """Add a device of the kind dummy, which is down; EEXIST if there is a device of this name."""
    kind = nested(_IFLA_LINKINFO, string(_IFLA_INFO_KIND, "dummy"))
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + string(_IFLA_IFNAME, name) + kind
    return Request(_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def delete_device(device: int) -> Request:
    """Delete a device with its addresses; ENODEV if there is none of this index."""
    return Request(_DELLINK, 0, _IFINFOMSG.pack(0, 0, device, 0, 0))


def set_alias(device: int, alias: str) -> Request:
    """Set the alias of a device, which `ip link` shows; ENODEV if there is none of this index."""
    body = _IFINFOMSG.pack(0, 0, device, 0, 0) + attribute(_IFLA_IFALIAS, alias.encode())
    return Request(_SETLINK, 0, body)


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
    """Read the replies to `get_addresses`, whatever the scope of the address."""
    found = []
    for reply in replies:
        if len(reply) < _IFADDRMSG.size:
            continue
        _, _, flags, _, device = _IFADDRMSG.unpack_from(reply)
        fields = attribute_map(reply[_IFADDRMSG.size :])
        # On a point-to-point device IFA_ADDRESS is the peer's address.
        value = bytes(fields.get(_IFA_LOCAL, fields.get(_IFA_ADDRESS, b"")))
        if len(value) in (4, 16):
            # An optimistic address is in use while the detection is under way.
            pending = flags & _TENTATIVE and not flags & _OPTIMISTIC
            is_unique = not (pending or flags & _DAD_FAILED)
            found.append(DeviceAddress(device, Address(value), is_unique))
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


def get_local_routes(family: Family) -> Request:
    """Request one family's routes of the type local in the table local.

    Without `Requests.filter_dumps` the kernel ignores table and type, and returns all routes.
    """
    head = _RTMSG.pack(_AF[family], 0, 0, 0, RT_TABLE_LOCAL, 0, 0, RTN_LOCAL, 0)
    return Request(_GETROUTE, 0, head)


def read_local_routes(replies: Iterable[memoryview], family: Family) -> list[LocalRoute]:
    """Read the replies to `get_local_routes`."""
    found = []
    for reply in replies:
        if len(reply) < _RTMSG.size:
            continue
        of_family, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(reply)
        # A kernel without IPv6 returns the IPv4 routes instead of an error.
        if (of_family, table, kind) != (_AF[family], RT_TABLE_LOCAL, RTN_LOCAL):
            continue
        fields = attribute_map(reply[_RTMSG.size :])
        address = bytes(fields.get(_RTA_DST, b"")) or bytes(family.bits // 8)
        if len(address) * 8 == family.bits:
            network = Network(Address(address), prefix)
            found.append(LocalRoute(_device(fields), network))
    return found


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
        return Route(
            _device(fields),
            Address(source) if len(source) in (4, 16) else None,
            kind == RTN_LOCAL,
        )
    return None


def find_device(kernel: Requests, name: str) -> int:
    """Return the index of a device, 0 if there is none of this name. Raises KernelError."""
    link = find_link(kernel, name)
    return link.index if link else 0


def find_link(kernel: Requests, name: str) -> Link | None:
    """Return a device by its name. Raises KernelError."""
    try:
        replies = kernel.get(
            Request(_GETLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0) + string(_IFLA_IFNAME, name))
        )
    except KernelError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT):
            return None
        raise
    # An alternative name (altname) also finds a device, so its primary name is compared.
    for reply in replies:
        if len(reply) < _IFINFOMSG.size:
            continue
        _, _, index, _, _ = _IFINFOMSG.unpack_from(reply)
        fields = attribute_map(reply[_IFINFOMSG.size :])
        if text(fields.get(_IFLA_IFNAME, memoryview(b""))) == name:
            return Link(int(index), text(fields.get(_IFLA_IFALIAS, memoryview(b""))))
    return None


def _device(fields: Mapping[int, memoryview]) -> int:
    device = fields.get(_RTA_OIF, b"")
    return int(_NUMBER.unpack(device)[0]) if len(device) == _NUMBER.size else 0


def _pack_address(device: int, address: Address) -> bytes:
    family = family_of(address)
    head = _IFADDRMSG.pack(_AF[family], family.bits, 0, 0, device)
    # IPv4 requires IFA_LOCAL. An IFA_ADDRESS that differs would be a peer's address.
    return head + attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address) + _FLAGS
