"""How the kernel would send to an address, over rtnetlink.

Facts: include/uapi/linux/rtnetlink.h, rtnetlink(7).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

import msgspec

from pyproxy.model.address import Address, family_of
from pyproxy.netlink.attributes import attribute, attribute_map
from pyproxy.netlink.requests import Request

_GETROUTE = 26
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_RTN_LOCAL = 2
_ROUTE = struct.Struct("=BBBBBBBBI")
"""Family, lengths of destination and source, service, table, protocol, scope, type, flags."""

_NUMBER = struct.Struct("=I")


class Route(msgspec.Struct, frozen=True):
    """The number of the device to send by, and the source address, None where it says none.

    `here` says that the address is one of this machine's own.
    """

    device: int
    source: Address | None
    here: bool


def get_route(address: Address) -> Request:
    """Ask for the way to an address; ENETUNREACH and its like where there is none."""
    af = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    head = _ROUTE.pack(af, family_of(address).bits, 0, 0, 0, 0, 0, 0, 0)
    return Request(_GETROUTE, 0, head + attribute(_RTA_DST, address))


def route(replies: Iterable[memoryview]) -> Route | None:
    """Read the answer to `get_route`; None where there is none that can be read."""
    for reply in replies:
        if len(reply) < _ROUTE.size:
            continue
        kind = _ROUTE.unpack_from(reply)[7]
        fields = attribute_map(reply[_ROUTE.size :])
        source = bytes(fields.get(_RTA_PREFSRC, b""))
        device = fields.get(_RTA_OIF, b"")
        return Route(
            _NUMBER.unpack(device)[0] if len(device) == _NUMBER.size else 0,
            Address(source) if len(source) in (4, 16) else None,
            kind == _RTN_LOCAL,
        )
    return None
