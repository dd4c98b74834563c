"""The last changes, written once for any number of watchers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyproxy.inspect.snapshot import Change

CAPACITY = 10_000
"""Changes that a watcher may lag behind before it loses some."""

BATCH = 500
"""Changes that a watcher gets at once, so that none holds the lock for long."""

_IDLE_SECONDS = 1.0


class ChangeLog:
    """A ring of changes. `add` is for one thread, the rest for any."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._ring: list[Change | None] = [None] * capacity
        self._changed = threading.Condition(threading.Lock())
        self._added = 0
        self._watchers = 0

    @property
    def has_watchers(self) -> bool:
        """Whether anybody reads what is added."""
        return self._watchers > 0

    def add(self, changes: Sequence[Change]) -> None:
        """Add changes; the cost does not depend on the number of watchers' unread changes."""
        size = len(self._ring)
        with self._changed:
            self._added += len(changes)
            kept = changes[-size:]
            for number, change in enumerate(kept, self._added - len(kept)):
                self._ring[number % size] = change
            self._changed.notify_all()

    @contextmanager
    def watched(self) -> Iterator[Iterator[Sequence[Change]]]:
        """Yield an iterator of the changes from now on, in batches; empty after an idle second."""
        with self._changed:
            self._watchers += 1
            position = self._added
        try:
            yield self._batches(position)
        finally:
            with self._changed:
                self._watchers -= 1

    def _batches(self, position: int) -> Iterator[Sequence[Change]]:
        size = len(self._ring)
        while True:
            with self._changed:
                if position == self._added:
                    self._changed.wait(_IDLE_SECONDS)
                # The ring holds no more: what a slow watcher has not read is lost.
                position = max(position, self._added - size)
                end = min(position + BATCH, self._added)
                found = [self._ring[number % size] for number in range(position, end)]
            position = end
            yield [change for change in found if change is not None]
