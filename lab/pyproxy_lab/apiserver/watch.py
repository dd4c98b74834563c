"""One watch: what it selects, and the lines that wait for its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from pyproxy_lab.apiserver.encodings import Cause, Encodings
from pyproxy_lab.apiserver.rendering import Rendering
from pyproxy_lab.apiserver.selectors import Selector
from pyproxy_lab.apiserver.store import Change, EventType, Store, Stored, Table

FROM_NOW = -1
_MOST_PENDING = 100_000
_BOOKMARKS_BEFORE_END = (2.0, 1.0)
_INITIAL_BATCH = 256


class WatchOptions(msgspec.Struct, frozen=True):
    """The options of a watch request.

    `revision` is None to begin with what exists, and FROM_NOW to begin with nothing.
    `initial_end` asks for the bookmark that ends the initial events. `timeout` is in seconds.
    """

    prefix: str
    selector: Selector
    revision: int | None
    bookmarks: bool
    initial_end: bool
    timeout: float


class Watch:
    """Follows a table from a revision on. A client that is too slow loses its watch."""

    def __init__(
        self,
        store: Store,
        table: Table,
        rendering: Rendering,
        options: WatchOptions,
        encodings: Encodings,
    ) -> None:
        self._store = store
        self._table = table
        self._rendering = rendering
        self._options = options
        self._encodings = encodings
        self._pending: list[bytes] = []
        self._initial: list[Stored] = []
        self._started = 0
        self._wake = asyncio.Event()
        self._open = True

    def close(self) -> None:
        """End the watch as at its timeout; lines that wait are still sent."""
        self._open = False
        self._wake.set()

    def start(self) -> None:
        """Take what exists or what happened since, and keep what happens from now on.

        Raises ApiError (410, 504) for a revision that is no longer known, or not yet.
        """
        options = self._options
        self._started = self._store.revision
        if options.revision is None:
            self._initial = [
                stored
                for stored in self._table.current(options.prefix)
                if options.selector.matches(stored)
            ]
        elif options.revision != FROM_NOW:
            self._store.check_watchable(self._table, options.revision)
            for change in self._table.since(options.revision):
                self._receive(change, Cause.MISSED)
        self._count(Cause.INITIAL, len(self._initial))
        self._table.subscribers.append(self._receive)

    def stop(self) -> None:
        """Follow the table no longer."""
        self._table.subscribers.remove(self._receive)

    async def lines(self, bookmark_interval: float) -> AsyncIterator[bytes]:
        """Return whole lines, as many at a time as there are, until the watch ends."""
        initial, self._initial = self._initial, []
        for first in range(0, len(initial), _INITIAL_BATCH):
            batch = initial[first : first + _INITIAL_BATCH]
            yield b"".join(self._rendering.event(EventType.ADDED, s) for s in batch)
        if self._options.initial_end:
            self._count(Cause.BOOKMARK)
            yield self._rendering.bookmark(self._started, initial_events_end=True)
        async for chunk in self._live(bookmark_interval):
            yield chunk

    async def _live(self, bookmark_interval: float) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        now = loop.time()
        end = now + self._options.timeout
        bookmarks = self._bookmark_times(now, end, bookmark_interval)
        while True:
            if self._pending:
                chunk = b"".join(self._pending)
                self._pending.clear()
                yield chunk
                continue
            if not self._open or loop.time() >= end:
                return
            until = min(bookmarks[-1], end) if bookmarks else end
            self._wake.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._wake.wait()
            except TimeoutError:
                if bookmarks and loop.time() >= bookmarks[-1]:
                    bookmarks.pop()
                    self._count(Cause.BOOKMARK)
                    yield self._rendering.bookmark(self._store.revision)

    def _bookmark_times(self, start: float, end: float, interval: float) -> list[float]:
        """Return the times of bookmarks, last first: at intervals, and shortly before the end."""
        if not self._options.bookmarks:
            return []
        regular = [start + n * interval for n in range(1, int((end - start) / interval) + 1)]
        final = [end - seconds for seconds in _BOOKMARKS_BEFORE_END]
        # A short watch has no time for a bookmark: one that is due at once is left out.
        return sorted({t for t in (*regular, *final) if start + 0.5 < t < end}, reverse=True)

    def _count(self, cause: Cause, number: int = 1) -> None:
        self._encodings.add(self._rendering.media_type, cause, number)

    def _receive(self, change: Change, cause: Cause = Cause.CHANGE) -> None:
        if not change.new.path.startswith(self._options.prefix) or not self._open:
            return
        event = self._event(change)
        if event is None:
            return
        if len(self._pending) >= _MOST_PENDING:
            self._pending.clear()
            self.close()
            return
        # Open watches share the encoding of a change.
        if cause is Cause.MISSED or not self._rendering.has_line(change, event):
            self._count(cause)
        self._pending.append(self._rendering.line(change, event))
        self._wake.set()

    def _event(self, change: Change) -> EventType | None:
        """Return the event type of a change for a watch that selects objects."""
        selector = self._options.selector
        if selector.everything:
            had, has = change.old is not None, not change.gone
        else:
            had = change.old is not None and selector.matches(change.old)
            has = not change.gone and selector.matches(change.new)
        if had and has:
            return EventType.MODIFIED
        if has:
            return EventType.ADDED
        return EventType.DELETED if had else None
