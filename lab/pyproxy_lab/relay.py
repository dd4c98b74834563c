"""A TCP relay: it leads connections to a socket in one namespace on to an address in another."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_CHUNK = 1 << 16
_CONNECT_TIMEOUT = 10.0
_CONNECTIONS = 64


@contextlib.contextmanager
def relaying(listener: socket.socket, target: tuple[str, int]) -> Iterator[None]:
    """Relay the connections of `listener` to `target` until the block ends.

    The thread that calls determines the namespace in which `target` is connected to. A connection
    is closed at once where `target` cannot be reached, or where 64 are open.
    """
    thread = threading.Thread(target=_accept, args=(listener, target), daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Closing the socket alone would not wake the thread that waits in accept().
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _accept(listener: socket.socket, target: tuple[str, int]) -> None:
    free = threading.BoundedSemaphore(_CONNECTIONS)
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # the listener was shut down
            return
        if not free.acquire(blocking=False):
            client.close()
            continue
        threading.Thread(target=_relay, args=(client, target, free), daemon=True).start()


def _relay(
    client: socket.socket, target: tuple[str, int], free: threading.BoundedSemaphore
) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(free.release)
        stack.enter_context(client)
        try:
            server = socket.create_connection(target, _CONNECT_TIMEOUT)
        except OSError:
            return
        server.settimeout(None)
        with server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the end of `source`, and then end `sink`, whose other direction stays open."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
