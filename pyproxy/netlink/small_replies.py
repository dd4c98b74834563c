"""Receive thousands of small replies with few system calls.

Facts: recvmmsg(2), net/socket.c. The call returns up to 1,024 datagrams, each in its own buffer. A
call for each datagram would have to wait for the interpreter lock as often.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Iterator

from pyproxy.netlink.kernel_errors import kernel_error

STRIDE = 512
"""Bytes from one reply to the next; a longer reply is cut, which its header's length shows."""

_MOST = 1024
"""The kernel's UIO_MAXIOV, the most datagrams of one call."""


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _MessageHeader(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_IoVector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Entry(ctypes.Structure):
    # struct mmsghdr: the header, and the length of what was received.
    _fields_ = (("header", _MessageHeader), ("received", ctypes.c_uint))


class SmallReplies:
    """The buffers of recvmmsg, half a MiB. One thread may use them at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray(_MOST * STRIDE)
        self._view = memoryview(self._buffer)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._vectors = (_IoVector * _MOST)()
        self._entries = (_Entry * _MOST)()
        for number, (vector, entry) in enumerate(zip(self._vectors, self._entries, strict=True)):
            vector.base, vector.size = base + number * STRIDE, STRIDE
            entry.header.vectors, entry.header.vector_count = ctypes.pointer(vector), 1
        self._libc = ctypes.CDLL(None, use_errno=True)

    def waiting(self) -> Iterator[memoryview]:
        """Yield the replies that wait in the socket, many at a time, each at a multiple of STRIDE.

        A view is valid until the next one. Does not block. Raises KernelError.
        """
        while True:
            count = self._libc.recvmmsg(
                self._descriptor, self._entries, _MOST, socket.MSG_DONTWAIT, None
            )
            if count > 0:
                yield self._view[: count * STRIDE]
            elif count == 0 or (number := ctypes.get_errno()) == errno.EAGAIN:
                return
            elif number != errno.EINTR:
                raise kernel_error(number, "receiving from netfilter")
