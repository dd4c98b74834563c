"""A small HTTP server: one thread with one event loop for any number of listeners.

Only the head of a request is read, and every response closes its connection. That suffices for
probes and scrapers, and a slow or hostile client cannot hold a thread.
"""

# Not http.server as in `inspect` and `ui`, which needs a thread per listener and per client: each
# Service with a health-check port has a listener for each node address.

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
_MAX_CONNECTIONS = 512  # below the usual limit of 1024 descriptors, which listeners need too
_ACCEPT_PAUSE = 1.0
_STOP_TIMEOUT = 1.0


class Response(msgspec.Struct, frozen=True):
    """A response; the server adds Content-Length and Connection."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[str], Response]
"""Returns the response to a path. It runs in the server's thread, so it must not block."""


class Listener(msgspec.Struct, frozen=True, eq=False):
    """A listening socket and its handler, open until `HttpThread.close`."""

    sock: socket.socket
    handler: Handler

    @property
    def port(self) -> int:
        """The port, also if the kernel chose it."""
        port: int = self.sock.getsockname()[1]
        return port


class HttpThread:
    """Serves any number of listeners between `start` and `stop`.

    It calls accept itself, because asyncio's Server loses a connection that arrives while its
    listener closes, and listeners open and close here as Services change.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._listeners: set[Listener] = set()
        # asyncio holds tasks by weak references only, so a task without another one may vanish.
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close all sockets and end the thread. Blocks for a second at most; idempotent."""
        if self._thread.is_alive():
            # A loop is not thread-safe: other threads may only schedule calls in it.
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_TIMEOUT)

    def listen(self, address: ListenAddress, handler: Handler) -> Listener:
        """Listen and serve. Blocks until bound; not from the server's thread. Raises OSError."""
        return self._call(self.serve(address, handler))

    def close(self, listeners: Iterable[Listener]) -> None:
        """Close listeners. Their ports are free when this returns."""

        async def close() -> None:
            for listener in listeners:
                self._close(listener)

        self._call(close())

    def spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        """Run a coroutine in the server's thread until it or the thread ends."""
        self._loop.call_soon_threadsafe(self._spawn, coroutine)

    async def serve(self, address: ListenAddress, handler: Handler) -> Listener:
        """Listen and serve, called in the server's thread. Raises OSError."""
        listener = Listener(bind(address), handler)
        self._listeners.add(listener)
        self._watch(listener)
        return listener

    def _call(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            for listener in tuple(self._listeners):
                self._close(listener)
            self._loop.run_until_complete(self._end_tasks())
            self._loop.close()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _watch(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener.sock, self._accept, listener)

    def _close(self, listener: Listener) -> None:
        self._loop.remove_reader(listener.sock)
        self._listeners.discard(listener)
        listener.sock.close()

    def _accept(self, listener: Listener) -> None:
        # One connection per call: epoll is level-triggered, so it reports the next one again.
        try:
            connection, _ = listener.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            # The client disconnected between epoll's report and accept.
            return
        except OSError as error:
            # EMFILE, for example: the client waits in the kernel's accept queue until we resume.
            log.warning("cannot accept on port %d: %s", listener.port, error.strerror)
            self._loop.remove_reader(listener.sock)
            self._loop.call_later(_ACCEPT_PAUSE, self._watch, listener)
            return
        # On Linux it does not inherit O_NONBLOCK, which asyncio's sock_ methods need.
        connection.setblocking(False)
        if len(self._tasks) >= _MAX_CONNECTIONS:
            connection.close()
        else:
            self._spawn(self._serve_client(connection, listener.handler))

    async def _serve_client(self, connection: socket.socket, handler: Handler) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                if head := await self._read_head(connection):
                    await self._loop.sock_sendall(connection, _respond(handler, head))
        except (TimeoutError, OSError) as error:
            log.debug("client disconnected or timed out: %s", error)
        finally:
            connection.close()

    async def _read_head(self, connection: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            received = await self._loop.sock_recv(connection, 4096)
            head += received
            if not received or len(head) > _HEAD_LIMIT:
                return b""
        return head


def bind(address: ListenAddress) -> socket.socket:
    """Return a listening socket. Raises OSError.

    An unspecified address listens on both families, as in Go.
    """
    if any(address.address):
        return _bound(family_of(address.address), address_text(address.address), address.port)
    with contextlib.suppress(OSError):
        return _bound(Family.IPV6, "::", address.port, both=True)
    # Either the kernel has no IPv6, or the port is in use: then this raises the error.
    return _bound(Family.IPV4, "0.0.0.0", address.port)  # noqa: S104


def _bound(family: Family, host: str, port: int, both: bool = False) -> socket.socket:
    kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    sock = socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # A restarted agent binds although connections of the last one are in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Set in both cases, because the sysctl net.ipv6.bindv6only decides the default.
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
    if version.startswith("HTTP/1."):
        response = _call_handler(handler, target.partition("?")[0])
    else:
        response = Response(b"400 Bad Request", 400)
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


def _call_handler(handler: Handler, path: str) -> Response:
    try:
        return handler(path)
    except Exception:
        # A bug in a handler must not look like a dead agent to a load balancer.
        log.exception("the handler of %s failed", path)
        return Response(b"500 Internal Server Error", 500)
