"""Versions of large objects that change too often: held back, and only the newest is decoded.

A tenant may write an object of a megabyte ten times a second, and decoding each version takes half
of a core. So each large object has a budget of bytes. Beyond it a new version waits until the
budget allows it, and replaces the one that waits. Small objects never wait.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from pyproxy import logs
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.rate_limits import BucketTable, Rate
from pyproxy.source import wire
from pyproxy.source.decode import DecodedObject, decode_object
from pyproxy.source.retry import Clock
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

LARGE = 128 << 10
"""Bytes from which on an object has a budget. EndpointSlices of 100 endpoints have 30 to 60 KB."""

_TOKEN = 1 << 10
_BUDGET = Rate(burst=1024, period=1 / 256)
"""Each object has 1 MiB at once and 256 KiB a second, in tokens of 1 KiB.

A slice of 1,000 endpoints, 300 KB, then waits for 1.2 s at most; kube-proxy waits for a second
between all syncs.
"""

_MOST_HELD = 16 << 20
"""Bytes of all waiting versions; beyond them, versions are decoded at once."""

_REMEMBERED = 1024
_POLL = 0.1
"""Seconds until the thread looks for other versions that are due."""


class _Held(msgspec.Struct):
    """A version that waits until `due`. `read_at` is when the first of those it replaced came."""

    name: ObjectName
    raw: wire.Encoded
    size: int
    due: float
    read_at: float


class LargeObjects:
    """The waiting versions of one kind, and the thread that decodes them, which ends without any.

    `emit` takes a decoded version and the time at which it was read. It is called with a lock held,
    so it must not block. Methods may be called from one thread.
    """

    def __init__(
        self,
        kind: Kind,
        clock: Clock,
        stopping: threading.Event,
        emit: Callable[[DecodedObject, float], None],
    ) -> None:
        self._kind = kind
        self._clock = clock
        self._stopping = stopping
        self._emit = emit
        self._budgets = BucketTable(_BUDGET, _REMEMBERED)
        self._lock = threading.Lock()
        self._held: dict[ObjectName, _Held] = {}
        self._size = 0
        # The version that the thread decodes now, None if it is not to be emitted any more.
        self._current: _Held | None = None
        self._running = False

    def hold(self, name: ObjectName, raw: wire.Encoded, read_at: float) -> bool:
        """Hold a version back if its object has used up its budget; else return False.

        The caller then decodes the version at once.
        """
        size, now = wire.size(raw), self._clock.now()
        with self._lock:
            budget = self._budgets.bucket(name)
            wait = budget.wait(now)
            before = self._held.get(name)
            is_decoded = self._current is not None and self._current.name == name
            has_room = self._size - (before.size if before else 0) + size <= _MOST_HELD
            if not has_room or not (wait or before or is_decoded):
                # An object without room takes no credit, or it would wait for minutes later.
                if not wait:
                    budget.take(now, _tokens(size))
                return False
            due = now + wait
            if before is None:
                log.info(
                    "%s %s: %d bytes that change too often; decoding its newest version in %.1f s",
                    self._kind.value,
                    name,
                    size,
                    wait,
                    extra=logs.about(self._kind.value, str(name)),
                )
            else:
                self._size -= before.size
                due, read_at = before.due, before.read_at
            self._held[name] = _Held(name, wire.detached(raw), size, due, read_at)
            self._size += size
            if not self._running:
                self._running = True
                Worker(f"source-large-{self._kind.value}", self._run).start()
        return True

    def discard(self, name: ObjectName) -> None:
        """Emit no waiting version of an object: the caller emits a newer one."""
        if not self._running:
            return
        with self._lock:
            if (held := self._held.pop(name, None)) is not None:
                self._size -= held.size
            if self._current is not None and self._current.name == name:
                self._current = None

    def clear(self) -> None:
        """Emit no waiting version of any object."""
        with self._lock:
            self._held.clear()
            self._size = 0
            self._current = None

    def _run(self) -> None:
        while (due := self._next_due()) is not None:
            wait = due - self._clock.now()
            if wait > 0:
                # Versions that come meanwhile may be due earlier.
                self._clock.wait(self._stopping, min(wait, _POLL))
            elif (held := self._take(due)) is not None:
                decoded = decode_object(self._kind, held.raw)
                with self._lock:
                    # A version that came meanwhile and waits itself does not replace this one:
                    # an object that changes all the time would never be up to date.
                    if self._current is held and not self._stopping.is_set():
                        self._emit(decoded, held.read_at)
                    self._current = None

    def _next_due(self) -> float | None:
        """Return when the next version is due; None without any, which ends the thread."""
        with self._lock:
            if self._held and not self._stopping.is_set():
                return min(held.due for held in self._held.values())
            self._running = False
            return None

    def _take(self, due: float) -> _Held | None:
        """Take a version whose time has come."""
        with self._lock:
            for held in self._held.values():
                if held.due <= due:
                    del self._held[held.name]
                    self._size -= held.size
                    self._budgets.bucket(held.name).take(self._clock.now(), _tokens(held.size))
                    self._current = held
                    return held
        return None


def _tokens(size: int) -> int:
    return -(-size // _TOKEN)
