"""A small HTTP server: one thread with one event loop, whatever the number of listeners.

Requests are only read as far as their head, and every answer closes its connection. That is all
that probes and scrapers need, and it leaves a slow or hostile client nothing to hold on to.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import TypeVar

import msgspec

from pyproxy.config.settings import ListenAddress
from pyproxy.model.address import Family, address_text, family_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_HEAD_LIMIT = 16 * 1024
_REQUEST_TIMEOUT = 5.0
_MAX_CONNECTIONS = 512
_STOP_TIMEOUT = 1.0


class Response(msgspec.Struct, frozen=True):
    """What is answered; Content-Length and Connection are added."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[str], Response]
"""Answers the path of a request, in the server's thread, so it must not block."""


class Listener(msgspec.Struct, frozen=True):
    """One listening socket, until `HttpThread.close` takes it."""

    server: asyncio.Server

    @property
    def port(self) -> int:
        """The port, also where the kernel chose it."""
        port: int = self.server.sockets[0].getsockname()[1]
        return port


class HttpThread:
    """Serves any number of listeners between `start` and `stop`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._servers: set[asyncio.Server] = set()
        self._connections = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close whatever is open and end the thread, within a second; may be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_TIMEOUT)

    def listen(self, address: ListenAddress, handler: Handler) -> Listener:
        """Listen and begin to answer. Raises OSError where the address cannot be bound."""
        return self.run(self.serve(address, handler))

    async def serve(self, address: ListenAddress, handler: Handler) -> Listener:
        """Do what `listen` does, from within the server's thread."""
        server = await asyncio.start_server(
            lambda reader, writer: self._answer(handler, reader, writer),
            sock=bind(address),
            limit=_HEAD_LIMIT,
        )
        self._servers.add(server)
        return Listener(server)

    def close(self, listeners: Iterable[Listener]) -> None:
        """Free the listeners' ports before returning."""
        chosen = tuple(listeners)

        async def close() -> None:
            for listener in chosen:
                listener.server.close()
                self._servers.discard(listener.server)

        self.run(close())

    def run(self, coroutine: Coroutine[None, None, T]) -> T:
        """Run a coroutine in the server's thread and wait for what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        """Run a coroutine in the server's thread until it, or the thread, ends."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            for server in self._servers:
                server.close()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    async def _answer(
        self, handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connections += 1
        try:
            # Past the limit nothing is read: probes go on being answered by those that are left.
            if self._connections <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_REQUEST_TIMEOUT):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_respond(handler, head))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            log.debug("a client did not finish its request, or did not wait for the answer")
        finally:
            self._connections -= 1
            writer.close()


def bind(address: ListenAddress) -> socket.socket:
    """Make a listening socket. Raises OSError.

    An unspecified address of either family listens on both, as a Go program does.
    """
    if any(address.address):
        return _bound(family_of(address.address), address_text(address.address), address.port)
    with contextlib.suppress(OSError):
        return _bound(Family.IPV6, "::", address.port, both=True)
    # Either the kernel has no IPv6, or the port is taken, which this tells its caller.
    return _bound(Family.IPV4, "0.0.0.0", address.port)  # noqa: S104


def _bound(family: Family, host: str, port: int, both: bool = False) -> socket.socket:
    kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    sock = socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is Family.IPV6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind((host, port))
        sock.listen(128)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _respond(handler: Handler, head: bytes) -> bytes:
    method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    target, _, version = rest.partition(" ")
    if not version.startswith("HTTP/1."):
        response = Response(b"400 Bad Request", 400)
    else:
        response = handler(target.partition("?")[0])
    lines = (
        f"HTTP/1.1 {response.status} {http.HTTPStatus(response.status).phrase}",
        f"Content-Type: {response.content_type}",
        *(f"{name}: {value}" for name, value in response.headers),
        f"Content-Length: {len(response.body)}",
        "Connection: close",
        "",
        "",
    )
    body = b"" if method == "HEAD" else response.body
    return "\r\n".join(lines).encode("latin-1") + body
