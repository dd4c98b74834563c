"""A small HTTP server: one thread with one event loop for any number of listeners.

Only the head of a request is read, and every response closes its connection. That suffices for
probes and scrapers. No client can keep others waiting: connections are accepted in small batches,
all have deadlines, and `admission` says which one goes if there are too many.
"""

# Not http.server as in `inspect` and `ui`, which needs a thread per listener and per client: each
# Service with a health-check port has a listener.

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future

import msgspec

from pyproxy.health.admission import FairPool, Place, Reason, peer_of
from pyproxy.health.limits import PoolSizes
from pyproxy.health.messages import HEAD_END, Handler, Response, Slow, finish, pack, respond
from pyproxy.health.slow import SlowThread
from pyproxy.health.sockets import local_family

log = logging.getLogger(__name__)

_HEAD_LIMIT = 16 * 1024
_HEAD_TIMEOUT = 2.0
_RESPONSE_TIMEOUT = 10.0
_SWEEP_INTERVAL = 0.25
_BATCH = 16
"""Connections of one socket that are accepted before the next socket's turn."""

_TURN = 128
"""Connections that are accepted before requests are read again."""

_ACCEPT_PAUSE = 1.0
_LOG_INTERVAL = 60.0
_STOP_TIMEOUT = 1.0
_RESET = struct.pack("@ii", 1, 0)
"""struct linger: wait for no data when closing."""


class Listener(msgspec.Struct, frozen=True, eq=False):
    """The listening sockets of a port and its handler, open until `HttpThread.close`.

    `name` is that of a kind of listener, for metrics; `number` is unique in its thread.
    """

    sockets: tuple[socket.socket, ...]
    handler: Handler
    name: str
    number: int

    @property
    def port(self) -> int:
        """The port, also if the kernel chose it."""
        port: int = self.sockets[0].getsockname()[1]
        return port


class _Client:
    """A connection: first its request is read into `head`, then `rest` is written."""

    __slots__ = ("deadline", "head", "listener", "peer", "rest", "sock")

    def __init__(self, sock: socket.socket, listener: Listener, peer: str, deadline: float) -> None:
        self.sock = sock
        self.listener = listener
        self.peer = peer
        self.deadline = deadline
        self.head = b""
        self.rest: list[memoryview] = []


class HttpThread:
    """Serves any number of listeners between `start` and `stop`. `slow` makes slow responses.

    It calls accept itself, because asyncio's Server loses a connection that arrives while its
    listener closes, and listeners open and close here as Services change.
    """

    def __init__(self, name: str, sizes: PoolSizes, slow: SlowThread) -> None:
        self._loop = asyncio.new_event_loop()
        self._slow = slow
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._numbers = itertools.count()
        self._listeners: set[Listener] = set()
        # asyncio holds tasks by weak references only, so a task without another one may vanish.
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: FairPool[_Client] = FairPool(sizes.waiting, sizes.waiting_share)
        self._responding: FairPool[_Client] = FairPool(sizes.responding, sizes.responding_share)
        self._accepts_left = _TURN
        # Sockets whose turn to accept comes first; a dictionary keeps their order.
        self._postponed: dict[socket.socket, Listener] = {}
        self._dropped_since_log = 0
        self._next_log = 0.0
        self._is_sweep_due = False
        self.accepted: Counter[str] = Counter()
        self.dropped: Counter[tuple[str, Reason]] = Counter()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close all sockets and end the thread. Blocks for a second at most; idempotent."""
        if self._thread.is_alive():
            # A loop is not thread-safe: other threads may only schedule calls in it.
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_TIMEOUT)

    def serve(self, sockets: tuple[socket.socket, ...], handler: Handler, name: str) -> Listener:
        """Serve the listening sockets of a port. Any thread; does not block."""
        listener = self.prepare(sockets, handler, name)
        self.open([listener])
        return listener

    def prepare(self, sockets: tuple[socket.socket, ...], handler: Handler, name: str) -> Listener:
        """Return a listener that `open` serves. Any thread."""
        return Listener(sockets, handler, name, next(self._numbers))

    def open(self, listeners: Sequence[Listener]) -> None:
        """Serve listeners. Any thread; does not block. Wakes the server's thread once for all."""
        self._loop.call_soon_threadsafe(self._open, listeners)

    def close(self, listeners: Iterable[Listener]) -> Future[None]:
        """Close listeners. Any thread; does not block. Their ports are free when this is done."""

        async def close() -> None:
            for number, listener in enumerate(listeners, 1):
                self._close(listener)
                if not number % _BATCH:
                    # Clients of other listeners take their turn.
                    await asyncio.sleep(0)

        return asyncio.run_coroutine_threadsafe(close(), self._loop)

    def spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        """Run a coroutine in the server's thread until it or the thread ends."""
        self._loop.call_soon_threadsafe(self._spawn, coroutine)

    def open_connections(self) -> Counter[str]:
        """Count the present connections by the name of their listener. Any thread."""
        counts: Counter[str] = Counter()
        for listener in tuple(self._listeners):
            here = self._waiting.count(listener.number) + self._responding.count(listener.number)
            counts[listener.name] += here
        return counts

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            for listener in tuple(self._listeners):
                self._close(listener)
            for client in (*self._waiting, *self._responding):
                self._end(client)
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

    def _open(self, listeners: Sequence[Listener]) -> None:
        for listener in listeners:
            self._listeners.add(listener)
            for sock in listener.sockets:
                self._watch(sock, listener)

    def _watch(self, sock: socket.socket, listener: Listener) -> None:
        if listener in self._listeners:
            self._loop.add_reader(sock, self._accept, sock, listener)

    def _close(self, listener: Listener) -> None:
        was_open = listener in self._listeners
        self._listeners.discard(listener)
        for sock in listener.sockets:
            if was_open:
                self._loop.remove_reader(sock)
            self._postponed.pop(sock, None)
            sock.close()

    # Epoll is level-triggered and reports a socket again while connections wait in its queue.
    def _accept(self, sock: socket.socket, listener: Listener) -> None:
        if self._accepts_left == _TURN:
            # Runs before the next reports of epoll are handled.
            self._loop.call_soon(self._begin_turn)
        for _ in range(_BATCH):
            if self._accepts_left <= 0:
                self._postponed[sock] = listener
                return
            self._accepts_left -= 1
            if not self._accept_one(sock, listener):
                return

    def _begin_turn(self) -> None:
        self._accepts_left = _TURN
        while self._postponed and self._accepts_left > 0:
            sock = next(iter(self._postponed))
            self._accept(sock, self._postponed.pop(sock))

    def _accept_one(self, queue: socket.socket, listener: Listener) -> bool:
        """Accept a connection; return whether another one may wait."""
        try:
            sock, address = queue.accept()
        except ConnectionAbortedError:
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            return self._recover(queue, listener, error)
        # On Linux it does not inherit O_NONBLOCK.
        sock.setblocking(False)
        self.accepted[listener.name] += 1
        client = _Client(sock, listener, address[0], self._loop.time() + _HEAD_TIMEOUT)
        self._admit(self._waiting, client)
        self._loop.add_reader(sock, self._read, client)
        return True

    def _recover(self, sock: socket.socket, listener: Listener, error: OSError) -> bool:
        oldest = next(iter(self._waiting), None)
        if error.errno in (errno.EMFILE, errno.ENFILE) and oldest is not None:
            self._drop(oldest, Reason.OUT_OF_DESCRIPTORS)
            return True
        # The client waits in the kernel's accept queue until we resume.
        level = logging.WARNING if self._may_log() else logging.DEBUG
        log.log(level, "cannot accept on port %d: %s", listener.port, os.strerror(error.errno or 0))
        self._loop.remove_reader(sock)
        self._loop.call_later(_ACCEPT_PAUSE, self._watch, sock, listener)
        return False

    def _admit(self, pool: FairPool[_Client], client: _Client) -> None:
        place = Place(client.listener.number, peer_of(client.peer))
        if evicted := pool.add(client, place):
            self._drop(*evicted)
        self._schedule_sweep()

    def _read(self, client: _Client) -> None:
        try:
            received = client.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        client.head += received
        if HEAD_END in client.head:
            self._loop.remove_reader(client.sock)
            self._waiting.discard(client)
            self._respond(client)
        elif not received or len(client.head) > _HEAD_LIMIT:
            self._end(client)

    def _respond(self, client: _Client) -> None:
        try:
            family = local_family(client.sock)
        except OSError:
            self._end(client)
            return
        response = respond(client.listener.handler, client.head, family)
        if isinstance(response, Response):
            self._send(client, response)
            return
        client.deadline = self._loop.time() + _RESPONSE_TIMEOUT
        self._admit(self._responding, client)
        self._slow.put(lambda: self._respond_slowly(client, response))

    def _respond_slowly(self, client: _Client, slow: Slow) -> None:
        # Without a descriptor the client was dropped meanwhile.
        if client.sock.fileno() >= 0:
            response = finish(slow)
            # The loop is closed if the server stops now.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._send, client, response)

    def _send(self, client: _Client, response: Response) -> None:
        if client.sock.fileno() < 0:
            return
        outgoing = pack(response, client.head)
        client.rest = [memoryview(outgoing.head), memoryview(outgoing.body)]
        self._write(client)
        if client.rest:
            # The kernel's buffer is full: the client reads slowly, or the response is large.
            if client not in self._responding:
                client.deadline = self._loop.time() + _RESPONSE_TIMEOUT
                self._admit(self._responding, client)
            self._loop.add_writer(client.sock, self._write, client)

    def _write(self, client: _Client) -> None:
        try:
            sent = client.sock.sendmsg(client.rest)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("a client disconnected: %s", error)
            self._end(client)
            return
        while client.rest and sent >= len(client.rest[0]):
            sent -= len(client.rest.pop(0))
        if client.rest:
            client.rest[0] = client.rest[0][sent:]
        else:
            self._end(client)

    def _end(self, client: _Client) -> None:
        self._waiting.discard(client)
        self._responding.discard(client)
        if client.sock.fileno() >= 0:
            self._loop.remove_reader(client.sock)
            self._loop.remove_writer(client.sock)
            client.sock.close()
        client.rest = []

    def _drop(self, client: _Client, reason: Reason) -> None:
        self.dropped[client.listener.name, reason] += 1
        if reason is not Reason.TIMEOUT:
            self._dropped_since_log += 1
            if self._may_log():
                log.warning(
                    "dropped %d connections that were more than their share: the last is of %s at "
                    "the %s port",
                    self._dropped_since_log,
                    client.peer.removeprefix("::ffff:"),
                    client.listener.name,
                )
                self._dropped_since_log = 0
        # A reset: the kernel would keep each connection that this side closes for a minute.
        with contextlib.suppress(OSError):
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._end(client)

    def _may_log(self) -> bool:
        now = self._loop.time()
        if now < self._next_log:
            return False
        self._next_log = now + _LOG_INTERVAL
        return True

    def _schedule_sweep(self) -> None:
        """Sweep in a while, unless that is due anyway. Without clients the thread never wakes."""
        if not self._is_sweep_due:
            self._is_sweep_due = True
            self._loop.call_later(_SWEEP_INTERVAL, self._sweep)

    def _sweep(self) -> None:
        self._is_sweep_due = False
        now = self._loop.time()
        for pool in (self._waiting, self._responding):
            # All connections of a pool have the same timeout, so that the oldest is due first.
            for client in tuple(_due(pool, now)):
                self._drop(client, Reason.TIMEOUT)
            if any(True for _ in pool):
                self._schedule_sweep()


def _due(pool: Iterable[_Client], now: float) -> Iterator[_Client]:
    for client in pool:
        if client.deadline > now:
            return
        yield client
