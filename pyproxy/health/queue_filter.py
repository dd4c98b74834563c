"""The kernel's choice among sockets that share a port: by client, and one for the node itself.

The node's own connections come in through `lo`, whichever address they are sent to. Others are
spread by their source address, IPv6 by its /64, so that a client can fill one queue only. Facts:
net/core/sock_reuseport.c; linux/filter.h; socket(7), SO_ATTACH_REUSEPORT_CBPF, since Linux 4.5.
"""

from __future__ import annotations

import secrets
import socket

from pyproxy.netlink.socket_filter import (
    IF_EQUAL,
    JUMP,
    LOAD_WORD,
    MULTIPLY,
    RETURN,
    RETURN_A,
    SHIFT_RIGHT,
    SO_ATTACH_REUSEPORT_CBPF,
    TO_X,
    XOR,
    XOR_X,
    Step,
    attach,
)

_LOOPBACK_IFINDEX = 1  # in every network namespace
_ETH_P_IP = 0x0800
_GOLDEN = 0x9E3779B1
"""2**32 divided by the golden ratio: Knuth's multiplicative hash."""

# Offsets from SKF_AD_OFF are properties of the packet, those from SKF_NET_OFF bytes of its IP head.
_PROTOCOL, _IFINDEX = 0xFFFFF000, 0xFFFFF008
_SOURCE4, _SOURCE6 = 0xFFF00000 + 12, 0xFFF00000 + 8


def select_queues(sock: socket.socket, queues: int, *, own: bool) -> None:
    """Select among the sockets that listen on the port of `sock`, in the order of their listen.

    The first `queues`, a power of two, have a share of the clients each. With `own`, the next one
    has the node's own connections. Raises OSError.
    """
    steps = [*(_own(queues) if own else ()), *_spread(queues)]
    attach(sock, SO_ATTACH_REUSEPORT_CBPF, steps)


def _own(number: int) -> tuple[Step, ...]:
    return (
        (LOAD_WORD, 0, 0, _IFINDEX),
        (IF_EQUAL, 0, 1, _LOOPBACK_IFINDEX),
        (RETURN, 0, 0, number),
    )


def _spread(queues: int) -> tuple[Step, ...]:
    # With a seed, no client can choose an address that has the queue of another client.
    seed = secrets.randbits(32)
    return (
        (LOAD_WORD, 0, 0, _PROTOCOL),
        (IF_EQUAL, 5, 0, _ETH_P_IP),
        (LOAD_WORD, 0, 0, _SOURCE6),
        (TO_X, 0, 0, 0),
        (LOAD_WORD, 0, 0, _SOURCE6 + 4),
        (XOR_X, 0, 0, 0),
        (JUMP, 0, 0, 1),
        (LOAD_WORD, 0, 0, _SOURCE4),
        (XOR, 0, 0, seed),
        (MULTIPLY, 0, 0, _GOLDEN),
        # The highest bits, because they depend on all bits of the address.
        (SHIFT_RIGHT, 0, 0, 33 - queues.bit_length()),
        (RETURN_A, 0, 0, 0),
    )
