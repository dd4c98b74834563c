"""The connections of one server: how many there may be, and which end for others."""

from __future__ import annotations

import enum
import socket
import threading
from collections import Counter
from contextlib import suppress

import msgspec


class State(enum.IntEnum):
    """The states of a connection. If there are too many connections, lower values end first."""

    IDLE = 0
    """It has sent no complete request."""
    STREAMING = 1
    """It gets results until it is closed."""
    ANSWERING = 2
    """It waits for the answer to a request, or reads it."""


class _Connection(msgspec.Struct, eq=False):
    """An open connection; connections have the order in which they arrived."""

    sock: socket.socket
    peer: str
    state: State = State.IDLE


class Connections:
    """Chooses connections to close, so that no client keeps the others out. Thread-safe.

    If `limit` connections are open, a new one ends the oldest idle connection, of the peer with the
    most idle ones. Without an idle one, it ends a connection of the peer with the most connections,
    if its own peer has fewer. Streams have half of the places; one more ends the oldest.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        # In the order of arrival, as dicts are.
        self._open: dict[int, _Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, sock: socket.socket, peer: str) -> bool:
        """Add a connection; return false if it must be refused. Does not block."""
        with self._lock:
            if len(self._open) >= self._limit and not self._make_room(peer):
                return False
            self._open[id(sock)] = _Connection(sock, peer)
            return True

    def head_read(self, sock: socket.socket) -> None:
        """Record that a connection has sent its request."""
        with self._lock:
            if (found := self._open.get(id(sock))) is not None:
                found.state = State.ANSWERING

    def streams(self, sock: socket.socket) -> None:
        """Record that a connection gets results until it is closed."""
        with self._lock:
            if (found := self._open.get(id(sock))) is None:
                return
            found.state = State.STREAMING
            streams = [each for each in self._open.values() if each.state is State.STREAMING]
            if len(streams) > max(1, self._limit // 2):
                self._end(self._busiest(streams)[0])

    def remove(self, sock: socket.socket) -> None:
        """Remove a connection that has ended."""
        with self._lock:
            self._open.pop(id(sock), None)

    def _make_room(self, peer: str) -> bool:
        idle = [each for each in self._open.values() if each.state is State.IDLE]
        if idle:
            self._end(self._busiest(idle)[0])
            return True
        others = self._busiest(list(self._open.values()))
        own = sum(each.peer == peer for each in self._open.values())
        if own + 1 < len(others):
            self._end(min(others, key=lambda each: each.state))
            return True
        return False

    @staticmethod
    def _busiest(connections: list[_Connection]) -> list[_Connection]:
        """Return those of the peer that has most of them, oldest first."""
        peer, _ = Counter(each.peer for each in connections).most_common(1)[0]
        return [each for each in connections if each.peer == peer]

    def _end(self, connection: _Connection) -> None:
        # Its thread closes the socket once its read or write has failed.
        del self._open[id(connection.sock)]
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
