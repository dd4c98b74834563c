"""The IPsec policies of the kernel, over netlink.

Facts: include/uapi/linux/xfrm.h, net/xfrm/xfrm_user.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import msgspec

from pyproxy.model.address import Address, Family, Network
from pyproxy.netlink.attributes import attribute_map
from pyproxy.netlink.requests import Request

NETLINK_XFRM = 6
_GETPOLICY, _GETDEFAULT = 0x15, 0x28
_BLOCK = 1
_XFRMA_TMPL = 5
_DIRECTIONS = ("in", "out", "fwd")
_ID_SIZE = 64
# xfrm_userpolicy_info: a selector, lifetimes that do not matter, and the policy itself.
_INFO = struct.Struct("=16s16s4x4xHBBB3x4x4x96xI4xBB6x")
_IPV4, _IPV6 = 2, 10


class Policy(msgspec.Struct, frozen=True):
    """A policy for packets from `source` to `destination`; `direction` is in, out or fwd.

    `protocol` is 0 for all. Policies of lower `priority` numbers decide first. `transforms` is true
    if it has templates.
    """

    direction: str
    source: Network
    destination: Network
    protocol: int = 0
    priority: int = 0
    blocks: bool = False
    transforms: bool = False

    def __str__(self) -> str:
        does = "block" if self.blocks else "transform" if self.transforms else "allow"
        return f"{self.source} -> {self.destination} dir {self.direction} ({does})"


def get_policies() -> Request:
    """Request all policies in a dump."""
    return Request(_GETPOLICY, 0, bytes(_ID_SIZE))


def read_policies(replies: Iterable[memoryview]) -> Iterator[Policy]:
    """Read the replies to `get_policies`, without the policies of single sockets."""
    for reply in replies:
        if len(reply) < _INFO.size:
            continue
        destination, source, family, to, of, protocol, priority, direction, action = (
            _INFO.unpack_from(reply)
        )
        if direction >= len(_DIRECTIONS) or family not in (_IPV4, _IPV6):
            continue
        size = (Family.IPV4 if family == _IPV4 else Family.IPV6).bits // 8
        yield Policy(
            _DIRECTIONS[direction],
            Network(Address(source[:size]), of),
            Network(Address(destination[:size]), to),
            protocol,
            priority,
            action == _BLOCK,
            _XFRMA_TMPL in attribute_map(reply[_INFO.size :]),
        )


def get_default() -> Request:
    """Request what happens to packets that no policy matches; EINVAL before Linux 5.15."""
    return Request(_GETDEFAULT, 0, bytes(3))


def read_default(replies: Iterable[memoryview]) -> list[str]:
    """Return the directions whose packets the default policy blocks."""
    for reply in replies:
        if len(reply) >= 3:
            blocked = zip(("in", "fwd", "out"), bytes(reply[:3]), strict=False)
            return [direction for direction, action in blocked if action == _BLOCK]
    return []
