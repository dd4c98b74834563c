"""What the kernel would do with a packet to an address, over rtnetlink.

Facts: include/uapi/linux/rtnetlink.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

import msgspec

from pyproxy.model.address import Address, Family, family_of
from pyproxy.netlink.attributes import attribute, attribute_map
from pyproxy.netlink.requests import Request

_GETROUTE = 26
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_RTN_LOCAL = 2
_ROUTE = struct.Struct("=BBBBBBBBI")
_NUMBER = struct.Struct("=I")
_AF = {Family.IPV4: int(socket.AF_INET), Family.IPV6: int(socket.AF_INET6)}


class Route(msgspec.Struct, frozen=True):
    """By which device the kernel sends, and from what address, empty where it does not say.

    `local` says that the address is one of the machine's own.
    """

    device: int
    source: Address
    local: bool


def get_route(address: Address) -> Request:
    """Ask for the route to an address; ENETUNREACH, EHOSTUNREACH where there is none."""
    family = family_of(address)
    head = _ROUTE.pack(_AF[family], family.bits, 0, 0, 0, 0, 0, 0, 0)
    return Request(_GETROUTE, 0, head + attribute(_RTA_DST, address))


def route(answers: Iterable[memoryview]) -> Route | None:
    """Read the answer to `get_route`; None where it names no device."""
    for answer in answers:
        if len(answer) < _ROUTE.size:
            continue
        kind = _ROUTE.unpack_from(answer)[7]
        fields = attribute_map(answer[_ROUTE.size :])
        if len(fields.get(_RTA_OIF, b"")) == _NUMBER.size:
            (device,) = _NUMBER.unpack(fields[_RTA_OIF])
            return Route(device, Address(bytes(fields.get(_RTA_PREFSRC, b""))), kind == _RTN_LOCAL)
    return None
