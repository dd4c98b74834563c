"""Socket buffers beyond net.core's limits, where that is allowed.

Facts: net/core/sock.c. SO_SNDBUFFORCE and SO_RCVBUFFORCE ask for CAP_NET_ADMIN in the first user
namespace. In another one, as on the nodes of a rootless cluster, nf_tables can be programmed all
the same, with buffers as large as net.core.wmem_max and rmem_max say.
"""

from __future__ import annotations

import socket

_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_COUNTED_BESIDE = 32
"""Bytes that the kernel takes off the send buffer for itself."""


def grow_receive(grown: socket.socket, size: int) -> None:
    """Make room for `size` bytes of answers, or as many as may be."""
    _grow(grown, _SO_RCVBUFFORCE, socket.SO_RCVBUF, size)


def grow_send(grown: socket.socket, size: int) -> int:
    """Make room for a message of `size` bytes; the bytes of the largest that may be sent."""
    _grow(grown, _SO_SNDBUFFORCE, socket.SO_SNDBUF, size + _COUNTED_BESIDE)
    return grown.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _COUNTED_BESIDE


def _grow(grown: socket.socket, forced: int, allowed: int, size: int) -> None:
    try:
        grown.setsockopt(socket.SOL_SOCKET, forced, size)
    except PermissionError:
        grown.setsockopt(socket.SOL_SOCKET, allowed, size)
