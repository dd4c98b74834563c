"""The two ends of a measured connection: they do as little as possible beside the kernel's work.

    python -m bench.fast_path_ends

serves on PORT, prints `ready` once it listens, and ends when its standard input does. The first
byte of a connection says what the server does with the others.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable
from itertools import repeat

PORT = 9000
BULK = 20 << 20
"""Bytes of one bulk transfer."""

_ECHO, _TAKE, _ONCE = b"e", b"t", b"o"
_TRANSFERS = 10
_PIECE = 1 << 20
_WARM_UP = 64
"""Round trips before time counts: by then a connection is on the fast path."""


def round_trips(address: str, count: int) -> float:
    """Return the seconds of `count` requests and responses of one byte on one connection."""
    with _connected(address, _ECHO) as connection:
        send, receive, space = connection.send, connection.recv_into, bytearray(1)
        for _ in repeat(None, _WARM_UP):
            send(b"x")
            receive(space)
        began = time.perf_counter()
        for _ in repeat(None, count):
            send(b"x")
            receive(space)
        return time.perf_counter() - began


def bulk(address: str) -> float:
    """Return the mean seconds until the other end has BULK bytes, several times on a connection.

    A single time varies by a tenth, with the sizes of the packets that TCP makes.
    """
    with _connected(address, _TAKE) as connection, open(os.memfd_create("bulk"), "wb") as file:
        # Not a hole: Linux 6.1 fills a page of zeros for each page of a hole that is sent.
        file.write(bytes(_PIECE))
        # The first transfer opens TCP's window, and the connection is on the fast path after it.
        _transfer(connection, file.fileno())
        began = time.perf_counter()
        for _ in repeat(None, _TRANSFERS):
            _transfer(connection, file.fileno())
        return (time.perf_counter() - began) / _TRANSFERS


def new_connections(address: str, count: int) -> float:
    """Return the seconds of `count` connections, one after the other, of one byte each way."""
    space = bytearray(1)
    began = time.perf_counter()
    for _ in repeat(None, count):
        connection = socket.socket()
        connection.connect((address, PORT))
        connection.send(_ONCE)
        connection.recv_into(space)
        # The server closes first, so that its end keeps the state TIME_WAIT and no port is taken.
        connection.recv_into(space)
        connection.close()
    return time.perf_counter() - began


def _connected(address: str, kind: bytes) -> socket.socket:
    connection = socket.create_connection((address, PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.send(kind)
    connection.recv(1)
    return connection


def _transfer(connection: socket.socket, file: int) -> None:
    left = BULK
    while left:
        # The pages of the file are sent without a copy.
        left -= os.sendfile(connection.fileno(), file, 0, min(left, _PIECE))
    connection.recv(1)


def _serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    kind = connection.recv(1)
    connection.send(b"y")
    _KINDS[kind](connection)


def _echo(connection: socket.socket) -> None:
    send, receive, space = connection.send, connection.recv_into, bytearray(1)
    while receive(space):
        send(b"y")


def _take(connection: socket.socket) -> None:
    space = bytearray(_PIECE)
    left = BULK
    # With MSG_TRUNC, TCP discards what it would copy.
    while size := connection.recv_into(space, min(left, _PIECE), socket.MSG_TRUNC):
        left -= size
        if not left:
            connection.send(b"y")
            left = BULK


def _once(connection: socket.socket) -> None:
    """Close at once."""


_KINDS: dict[bytes, Callable[[socket.socket], None]] = {_ECHO: _echo, _TAKE: _take, _ONCE: _once}


def main() -> None:
    """Serve until standard input ends."""
    listener = socket.create_server(("", PORT), backlog=64)
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in readable:
            return
        connection, _ = listener.accept()
        with connection:
            _serve(connection)


if __name__ == "__main__":
    main()
