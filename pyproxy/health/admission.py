"""Which connections stay if there are more than a server has room for.

A newcomer always stays: a kubelet or load balancer sends its request at once, and a connection that
has been open for long without one is idle. The oldest connection goes, of the client that has most
of them, at the listener that has most of them. Clients with few connections lose none this way,
however many others connect.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

_IPV6_PEER = 8
"""Bytes of the network that counts as one client: a host has a whole /64 (RFC 4291, 2.5.4)."""

T = TypeVar("T")


class Reason(enum.Enum):
    """Why the server dropped a connection; the values are a label of a metric."""

    SHARE = "share"
    FULL = "full"
    TIMEOUT = "timeout"
    OUT_OF_DESCRIPTORS = "descriptors"


class Place(msgspec.Struct, frozen=True):
    """The listener, by number, and the client that a connection counts for."""

    listener: int
    peer: bytes


def peer_of(host: str) -> bytes:
    """Return the client of an address as accept returns it: IPv4 whole, IPv6 by its /64."""
    # A socket of both families writes an IPv4 address as ::ffff:192.0.2.1.
    if "." in host:
        return socket.inet_pton(socket.AF_INET, host.rpartition(":")[2])
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:_IPV6_PEER]


class FairPool(Generic[T]):
    """Connections in order of arrival: `size` at most, and `share` at most of one client.

    The share is that of one client at one listener. Not thread-safe.
    """

    def __init__(self, size: int, share: int) -> None:
        self._size = size
        self._share = share
        # Dictionaries without values, which keep the order and remove in constant time.
        self._places: dict[T, Place] = {}
        self._queues: dict[int, dict[bytes, dict[T, None]]] = {}
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[T]:
        """Iterate in order of arrival."""
        return iter(self._places)

    def __contains__(self, item: object) -> bool:
        return item in self._places

    def count(self, listener: int) -> int:
        """Return the number of connections at a listener. Any thread."""
        return self._counts.get(listener, 0)

    def add(self, item: T, place: Place) -> tuple[T, Reason] | None:
        """Add a connection; return the one that must go for it, already removed, and why."""
        queue = self._queues.setdefault(place.listener, {}).setdefault(place.peer, {})
        queue[item] = None
        self._places[item] = place
        self._counts[place.listener] = self.count(place.listener) + 1
        if len(queue) > self._share:
            return self._remove_first(queue), Reason.SHARE
        if len(self._places) > self._size:
            # The newcomer is the last of its queue, and the longest queue has two or is not its.
            listener = max(self._counts, key=self._counts.__getitem__)
            longest = max(self._queues[listener].values(), key=len)
            return self._remove_first(longest), Reason.FULL
        return None

    def discard(self, item: T) -> None:
        """Remove a connection; does nothing if it is not there."""
        place = self._places.pop(item, None)
        if place is None:
            return
        peers = self._queues[place.listener]
        del peers[place.peer][item]
        if not peers[place.peer]:
            del peers[place.peer]
        if peers:
            self._counts[place.listener] -= 1
        else:
            del self._queues[place.listener], self._counts[place.listener]

    def _remove_first(self, queue: dict[T, None]) -> T:
        oldest = next(iter(queue))
        self.discard(oldest)
        return oldest
