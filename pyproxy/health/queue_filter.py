"""The kernel's choice among sockets that share a port: by client, and one for the node itself.

The node's own connections come in through `lo`, whichever address they are sent to. Others are
spread by their source address, IPv6 by its /64, so that a client can fill one queue only. Facts:
net/core/sock_reuseport.c; linux/filter.h; socket(7), SO_ATTACH_REUSEPORT_CBPF, since Linux 4.5.
"""

from __future__ import annotations

import ctypes
import secrets
import socket
import struct

_SO_ATTACH_REUSEPORT_CBPF = 51
_LOOPBACK_IFINDEX = 1  # in every network namespace
_ETH_P_IP = 0x0800
_GOLDEN = 0x9E3779B1
"""2**32 divided by the golden ratio: Knuth's multiplicative hash."""

_STEP = struct.Struct("=HBBI")
"""struct sock_filter: code, steps to skip if true and if false, operand."""

_LOAD, _TO_X = 0x20, 0x07
_JUMP, _IF_EQUAL, _RETURN, _RETURN_A = 0x05, 0x15, 0x06, 0x16
_XOR_X, _XOR, _MULTIPLY, _SHIFT_RIGHT = 0xAC, 0xA4, 0x24, 0x74
# Offsets from SKF_AD_OFF are properties of the packet, those from SKF_NET_OFF bytes of its IP head.
_PROTOCOL, _IFINDEX = 0xFFFFF000, 0xFFFFF008
_SOURCE4, _SOURCE6 = 0xFFF00000 + 12, 0xFFF00000 + 8


def select_queues(sock: socket.socket, queues: int, *, own: bool) -> None:
    """Select among the sockets that listen on the port of `sock`, in the order of their listen.

    The first `queues`, a power of two, have a share of the clients each. With `own`, the next one
    has the node's own connections. Raises OSError.
    """
    steps = [*(_own(queues) if own else ()), *_spread(queues)]
    code = ctypes.create_string_buffer(b"".join(_STEP.pack(*step) for step in steps))
    # struct sock_fprog: the number of steps, and a pointer to them.
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)


def _own(number: int) -> tuple[tuple[int, int, int, int], ...]:
    return (
        (_LOAD, 0, 0, _IFINDEX),
        (_IF_EQUAL, 0, 1, _LOOPBACK_IFINDEX),
        (_RETURN, 0, 0, number),
    )


def _spread(queues: int) -> tuple[tuple[int, int, int, int], ...]:
    # With a seed, no client can choose an address that has the queue of another client.
    seed = secrets.randbits(32)
    return (
        (_LOAD, 0, 0, _PROTOCOL),
        (_IF_EQUAL, 5, 0, _ETH_P_IP),
        (_LOAD, 0, 0, _SOURCE6),
        (_TO_X, 0, 0, 0),
        (_LOAD, 0, 0, _SOURCE6 + 4),
        (_XOR_X, 0, 0, 0),
        (_JUMP, 0, 0, 1),
        (_LOAD, 0, 0, _SOURCE4),
        (_XOR, 0, 0, seed),
        (_MULTIPLY, 0, 0, _GOLDEN),
        # The highest bits, because they depend on all bits of the address.
        (_SHIFT_RIGHT, 0, 0, 33 - queues.bit_length()),
        (_RETURN_A, 0, 0, 0),
    )
