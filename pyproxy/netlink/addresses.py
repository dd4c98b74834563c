"""Addresses of network devices over rtnetlink, to and from bytes, and who else changes them.

Facts: include/uapi/linux/if_addr.h, rtnetlink(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

import msgspec

from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family, family_of
from pyproxy.netlink.attributes import attribute, attribute_map, string, text
from pyproxy.netlink.frames import HEADER, NLM_F_CREATE, NLM_F_EXCL, frames
from pyproxy.netlink.requests import Request, Requests
from pyproxy.netlink.sockets import NETLINK_ROUTE, NetlinkSocket

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFLA_IFNAME = 3
_SCOPE_LINK = 253
_NODAD, _NOPREFIXROUTE = 0x02, 0x200
_FLAGS = attribute(_IFA_FLAGS, struct.pack("=I", _NODAD | _NOPREFIXROUTE))

_ADDRESS = struct.Struct("=BBBBI")
_LINK = struct.Struct("=BxHiII")
_AF = {Family.IPV4: int(socket.AF_INET), Family.IPV6: int(socket.AF_INET6)}
_GROUPS = 0x1 | 0x10 | 0x100
"""Links, and addresses of both families."""

_RECEIVE_BUFFER = 1 << 18


class OnDevice(msgspec.Struct, frozen=True):
    """An address, and the number of the device that has it."""

    device: int
    address: Address


def add_address(device: int, address: Address) -> Request:
    """Give a device an address of its own, with no network around it; EEXIST where it has it."""
    return Request(_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, _body(device, address))


def delete_address(device: int, address: Address) -> Request:
    """Take an address from a device; EADDRNOTAVAIL where it does not have it."""
    return Request(_DELADDR, 0, _body(device, address))


def get_addresses() -> Request:
    """Ask for the addresses of all devices."""
    return Request(_GETADDR, 0, _ADDRESS.pack(0, 0, 0, 0, 0))


def addresses(replies: Iterable[memoryview]) -> list[OnDevice]:
    """Read the answers to `get_addresses`; those of a link alone are nobody's to claim."""
    found = []
    for reply in replies:
        if len(reply) < _ADDRESS.size:
            continue
        _, _, _, scope, device = _ADDRESS.unpack_from(reply)
        if scope == _SCOPE_LINK:
            continue
        fields = attribute_map(reply[_ADDRESS.size :])
        # Of a device to a single peer, IFA_ADDRESS is the peer's.
        value = bytes(fields.get(_IFA_LOCAL, fields.get(_IFA_ADDRESS, b"")))
        if len(value) in (4, 16):
            found.append(OnDevice(device, Address(value)))
    return found


def find_device(kernel: Requests, name: str) -> int:
    """Ask for a device's number, 0 where there is none of that name. Raises KernelError."""
    try:
        replies = kernel.ask(
            Request(_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + string(_IFLA_IFNAME, name))
        )
    except KernelError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT):
            return 0
        raise
    for reply in replies:
        if len(reply) < _LINK.size:
            continue
        _, _, number, _, _ = _LINK.unpack_from(reply)
        if text(attribute_map(reply[_LINK.size :]).get(_IFLA_IFNAME, memoryview(b""))) == name:
            return int(number)
    return 0


def is_as_wished(number: int) -> bool:
    """Tell by its errno whether a refused change finds what it was to bring about."""
    return number in (errno.EEXIST, errno.EADDRNOTAVAIL)


class Watch:
    """Tells whether others have changed addresses, or one device, since the last question.

    `own_port` is the socket whose own changes do not count.
    """

    def __init__(self, own_port: int) -> None:
        self._own_port = own_port
        self._socket = NetlinkSocket(NETLINK_ROUTE, "addresses", _RECEIVE_BUFFER, _GROUPS)

    def changed(self, device: int) -> bool:
        """Look without waiting: whether the device of this number, or any address, changed.

        Changes that the socket had no room for count. Raises KernelError.
        """
        told, lost = self._socket.heard()
        return lost or any(
            self._counts(kind, message, device)
            for data in told
            for kind, _, _, message in frames(data)
        )

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _counts(self, kind: int, message: memoryview, device: int) -> bool:
        _, _, _, _, port = HEADER.unpack_from(message)
        if port == self._own_port:
            return False
        body = message[HEADER.size :]
        if kind in (_NEWADDR, _DELADDR):
            return True
        if kind in (_NEWLINK, _DELLINK) and len(body) >= _LINK.size:
            return bool(_LINK.unpack_from(body)[2] == device)
        return False


def _body(device: int, address: Address) -> bytes:
    family = family_of(address)
    head = _ADDRESS.pack(_AF[family], family.bits, 0, 0, device)
    return head + attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address) + _FLAGS
