"""Generic netlink: the numbers of its families, and the header of their messages.

Facts: include/uapi/linux/genetlink.h and net/netlink/genetlink.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pyproxy.netlink.attributes import attribute_map, string
from pyproxy.netlink.requests import Request

_CTRL, _CTRL_GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_HEADER = struct.Struct("=BBH")
_SHORT = struct.Struct("=H")

GENERIC_SIZE = _HEADER.size
"""Bytes of the header that follows netlink's: command, version, and two that are unused."""


def command(family: int, number: int, version: int, body: bytes = b"") -> Request:
    """Pack a command of a family, which `get_family` has the number of."""
    return Request(family, 0, _HEADER.pack(number, version, 0) + body)


def get_family(name: str) -> Request:
    """Request the message type of a family; the kernel loads its module for it.

    The kernel replies with ENOENT if it has no such family, or none in this network namespace.
    """
    # Generic netlink assigns message types when a family is registered, so they differ by boot.
    return command(_CTRL, _CTRL_GETFAMILY, 1, string(_FAMILY_NAME, name))


def read_family_id(replies: Iterable[memoryview]) -> int:
    """Read the reply to `get_family`; 0 if it has no message type."""
    for reply in replies:
        found = attribute_map(reply[GENERIC_SIZE:])
        if _FAMILY_ID in found:
            return int(_SHORT.unpack(found[_FAMILY_ID])[0])
    return 0
