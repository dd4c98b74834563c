"""Pages that were rendered a moment ago, for further readers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

REFRESH_SECONDS = 0.5
"""Seconds for which a rendered page is sent to all readers."""

_PAGES = 32


class RecentPages:
    """The pages of the last `REFRESH_SECONDS`, a few dozen at most. Thread-safe.

    `clock` returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pages: OrderedDict[Hashable, tuple[bytes, float]] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        """Return a page, None if it is missing or too old."""
        with self._lock:
            page, taken_at = self._pages.get(key, (None, 0.0))
            return page if self._clock() - taken_at < REFRESH_SECONDS else None

    def put(self, key: Hashable, page: bytes, taken_at: float) -> None:
        """Keep a page whose snapshot was taken at a time of the clock."""
        with self._lock:
            self._pages[key] = page, taken_at
            self._pages.move_to_end(key)
            while len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
