"""When the next sync may begin: at once when nothing speaks against it."""

from __future__ import annotations

_FIRST_RETRY = 0.1
_LAST_RETRY = 30.0


class Pace:
    """The least time between two syncs, and longer and longer ones after failures, in seconds."""

    def __init__(self, min_sync_period: float) -> None:
        self._period = min_sync_period
        self._not_before = 0.0
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many syncs have failed since the last that did not."""
        return self._failures

    def due(self) -> float:
        """Give the earliest time for a sync."""
        return self._not_before

    def succeeded(self, now: float) -> None:
        """Note a sync that ended well."""
        self._failures = 0
        self._not_before = now + self._period

    def failed(self, now: float) -> None:
        """Note one that did not: the first retry comes soon, each further one later."""
        self._failures += 1
        wait = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(self._failures - 1, 20))
        self._not_before = now + max(self._period, wait)
