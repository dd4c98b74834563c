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
_QUEUES, _FEW_QUEUES = 16, 2
_ENOUGH = 1024
"""Free descriptors from which on the addresses for health and metrics have many queues."""


class PoolSizes(msgspec.Struct, frozen=True):
    """How many connections may wait for a request, and how many for the end of a response.

    A share is what one client may have of each at one listener.
    """

    waiting: int
    waiting_share: int
    responding: int
    responding_share: int


class Limits(msgspec.Struct, frozen=True):
    """Listening sockets, connections of other hosts and pods, and those of the node itself.

    `queues` is the number of accept queues that the addresses for health and metrics have; a client
    that connects too fast keeps out one in so many others. `listeners` are for other ports.
    """

    queues: int
    listeners: int
    public: PoolSizes
    own: PoolSizes


def within(descriptors: int) -> Limits:
    """Divide a process' limit of descriptors; half of it is reserved at most."""
    free = max(32, descriptors - min(RESERVE, descriptors // 2))
    public = min(_CONNECTIONS, free // 3)
    own = min(_OWN_CONNECTIONS, free // 8)
    queues = _QUEUES if free >= _ENOUGH else _FEW_QUEUES
    # Two addresses, each with one more queue for the node's own connections, and one to spare.
    listeners = free - public - own - 3 * (queues + 1)
    return Limits(queues, listeners, _divide(public, 8), _divide(own, 2))


def _divide(connections: int, peers: int) -> PoolSizes:
    responding = max(1, min(64, connections // 8))
    waiting = connections - responding
    return PoolSizes(
        waiting,
        max(1, min(128, waiting // peers)),
        responding,
        max(1, min(8, responding // 2)),
    )
