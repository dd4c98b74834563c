"""When the next sync may begin: at once when nothing speaks against it."""

from __future__ import annotations

from pyproxy.backoff import Backoff

_FIRST_RETRY = 0.1
_LAST_RETRY = 30.0

_FIGHT_WINDOW = 30.0
_FIGHT_REPAIRS = 5
_FIRST_TRUCE = 2.0
_LAST_TRUCE = 60.0
_PEACE = 180.0


class SyncBackoff:
    """The least time between two syncs, and longer and longer ones after failures, in seconds."""

    def __init__(self, min_sync_period: float) -> None:
        self._period = min_sync_period
        self._not_before = 0.0
        self._backoff = Backoff(_FIRST_RETRY, _LAST_RETRY)

    @property
    def failures(self) -> int:
        """How many syncs have failed since the last that did not."""
        return self._backoff.failures

    def due(self) -> float:
        """Give the earliest time for a sync."""
        return self._not_before

    def succeeded(self, now: float) -> None:
        """Note a sync that ended well."""
        self._backoff.reset()
        self._not_before = now + self._period

    def failed(self, now: float) -> None:
        """Note one that did not: the first retry comes soon, each further one later."""
        self._not_before = now + max(self._period, self._backoff.next())


class RepairLimiter:
    """When to look at the kernel after somebody else has written to it.

    At once, unless that happens again and again: then another program fights for the table, and
    each of the two undoing the other as fast as it can would serve nobody.
    """

    def __init__(self) -> None:
        self._recent: list[float] = []
        self._wait = 0.0

    @property
    def fighting(self) -> bool:
        """Whether repairs have become so many that they are put off."""
        return self._wait > 0

    def repaired(self, now: float) -> None:
        """Note that something had to be put right."""
        self._recent = [each for each in self._recent if now - each < _FIGHT_WINDOW] + [now]
        # In a truce few repairs are recent, so any other one before peace has come prolongs it.
        if self.fighting or len(self._recent) > _FIGHT_REPAIRS:
            self._wait = min(_LAST_TRUCE, 2 * self._wait or _FIRST_TRUCE)

    def due(self, now: float) -> float:
        """Give the time for a look that is asked for now."""
        if self._recent and now - self._recent[-1] >= _PEACE:
            self._recent, self._wait = [], 0.0
        last = self._recent[-1] if self._recent else now
        return max(now, last + self._wait)
