"""A TCP relay between clients and the API server that counts bytes and can cut connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

T = TypeVar("T")

_HOST = "127.0.0.1"
_CHUNK = 1 << 18
_BACKLOG = 1024


class CountingRelay:
    """Relays connections to a port of this host; the counts are of the payload of TCP.

    Methods may be called from any thread but the relay's own.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.received = 0
        """Bytes that the clients have received."""
        self.sent = 0
        """Bytes that the clients have sent."""
        self.connections = 0

    @classmethod
    @contextlib.contextmanager
    def running(cls, target: int) -> Iterator[CountingRelay]:
        """Run a relay in a thread of its own. Raises OSError if it cannot listen."""
        relay = cls(target)
        relay._thread.start()
        try:
            relay.open()
            yield relay
        finally:
            relay.cut()
            relay._loop.call_soon_threadsafe(relay._loop.stop)
            relay._thread.join()
            relay._loop.close()

    def open(self) -> None:
        """Accept connections, at the same port each time."""
        self._await(self._open())

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._await(self._cut())

    def counts(self) -> tuple[int, int, int]:
        """Return the bytes received and sent by clients, and their connections."""
        return self._await(self._counts())

    async def _counts(self) -> tuple[int, int, int]:
        return self.received, self.sent, self.connections

    async def _open(self) -> None:
        self._server = await asyncio.start_server(
            self._relay, _HOST, self.port, backlog=_BACKLOG, limit=_CHUNK
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._writers):
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0.001)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            back, out = await asyncio.open_connection(_HOST, self._target, limit=_CHUNK)
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        try:
            both = (
                asyncio.create_task(_copy(reader, out, self._count_sent)),
                asyncio.create_task(_copy(back, writer, self._count_received)),
            )
            # The end of either direction is the end of an HTTP connection.
            _, rest = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.wait(both)
        finally:
            self._writers.discard(writer)
            for each in (writer, out):
                each.close()

    def _count_sent(self, size: int) -> None:
        self.sent += size

    def _count_received(self, size: int) -> None:
        self.received += size

    def _await(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            count(len(data))
            writer.write(data)
            await writer.drain()
