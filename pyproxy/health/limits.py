"""How many descriptors the servers may use: the rest is for the kernel and the API server.

Any Service may have a health-check node port, and any pod may connect. Listeners and connections
therefore have a part of the process' limit of their own, and a repair never lacks a socket or pipe.
"""

from __future__ import annotations

import msgspec

RESERVE = 256
"""Descriptors for the rest: about 30, up to 32 clients of the inspect socket and the page, and the
pipes of programs."""

_CONNECTIONS = 1200
_OWN_CONNECTIONS = 128
_OWN_LISTENERS = 8
"""Sockets of the addresses for health and metrics: two each, and some to spare."""


class PoolSizes(msgspec.Struct, frozen=True):
    """How many connections may wait for a request, and how many for the end of a response.

    A share is what one client may have of each at one listener.
    """

    waiting: int
    waiting_share: int
    responding: int
    responding_share: int


class Limits(msgspec.Struct, frozen=True):
    """Listeners, connections of other hosts and pods, and connections of the node itself."""

    listeners: int
    public: PoolSizes
    own: PoolSizes


def within(descriptors: int) -> Limits:
    """Divide a process' limit of descriptors; half of it is reserved at most."""
    free = max(32, descriptors - min(RESERVE, descriptors // 2))
    public = min(_CONNECTIONS, free // 3)
    own = min(_OWN_CONNECTIONS, free // 8)
    return Limits(free - public - own - _OWN_LISTENERS, _divide(public, 8), _divide(own, 2))


def _divide(connections: int, peers: int) -> PoolSizes:
    responding = max(1, min(64, connections // 8))
    waiting = connections - responding
    return PoolSizes(
        waiting,
        max(1, min(128, waiting // peers)),
        responding,
        max(1, min(8, responding // 2)),
    )
