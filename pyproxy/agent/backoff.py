"""Schedule the next sync and the next read-back of the kernel. Pure: times are passed in."""

from __future__ import annotations

from pyproxy.backoff import Backoff

_FIRST_RETRY = 0.1
_LAST_RETRY = 30.0

# More than five repairs in 30 seconds are a conflict. It is over when 180 seconds pass without a
# repair, which is three times the longest pause, so that the delayed repairs do not end it.
_CONFLICT_WINDOW = 30.0
_CONFLICT_REPAIRS = 5
_FIRST_PAUSE = 2.0
_LAST_PAUSE = 60.0
_CONFLICT_OVER = 180.0

_AUDIT_PERIOD = 600.0
"""Seconds from a read-back, or an audit, to the next audit."""

_VERIFY_AFTER = 1.0
"""Seconds from a repair to the read-back that verifies it."""

_MIN_READBACK_PERIOD = 0.5
"""The least seconds between two read-backs, however much other programs write."""


_WORK_SHARE = 0.25
"""The share of the agent's time that large changes may use for as long as they like."""

_WORK_AT_ONCE = 4.0
"""Seconds of large changes that may be made before that share counts."""


UNKNOWN = "an unknown program"
"""The writer of a change that the kernel does not name."""


class SyncBackoff:
    """The least time between two syncs, doubled after each failure; in seconds."""

    def __init__(self, min_sync_period: float) -> None:
        self._period = min_sync_period
        self._not_before = 0.0
        # No jitter: each node retries against its own kernel, which no other node shares.
        self._backoff = Backoff(_FIRST_RETRY, _LAST_RETRY)

    @property
    def failures(self) -> int:
        """The number of failed syncs since the last successful one."""
        return self._backoff.failures

    def due(self) -> float:
        """Return the earliest time for a sync."""
        return self._not_before

    def succeeded(self, now: float, *, is_complete: bool) -> None:
        """Record a successful step of a sync, and whether the sync is complete."""
        self._backoff.reset()
        # The first change after a quiet period is written at once; only later ones wait.
        self._not_before = now + self._period if is_complete else now

    def failed(self, now: float) -> None:
        """Record a failed sync: the first retry is soon, each further one later."""
        self._not_before = now + max(self._period, self._backoff.next())


class WorkLimiter:
    """The earliest time for more work on large changes; in seconds.

    The work of a quiet agent is not delayed. An object that changes all the time gets
    `_WORK_SHARE` of the agent's time once `_WORK_AT_ONCE` seconds are used up.
    """

    def __init__(self) -> None:
        self._paid_until = 0.0

    @property
    def due(self) -> float:
        """The earliest time for more work."""
        return self._paid_until - _WORK_AT_ONCE / _WORK_SHARE

    def worked(self, began: float, ended: float) -> None:
        """Record work between two times."""
        self._paid_until = max(self._paid_until, began) + (ended - began) / _WORK_SHARE


class RepairLimiter:
    """The time of a repair after another program's change; in seconds.

    A repair is due at once, unless there were many: then the other program undoes each of them, and
    repairs are delayed so that the two do not use up the node's CPU.
    """

    def __init__(self) -> None:
        self._recent: list[float] = []
        self._pause = Backoff(_FIRST_PAUSE, _LAST_PAUSE)
        self._wait = 0.0

    @property
    def delays(self) -> bool:
        """Whether repairs are delayed."""
        return self._wait > 0

    def repaired(self, now: float) -> None:
        """Record a repair that had something to write."""
        self._recent = [each for each in self._recent if now - each < _CONFLICT_WINDOW] + [now]
        # Delayed repairs are few, so each of them prolongs the delay until the conflict is over.
        if self.delays or len(self._recent) > _CONFLICT_REPAIRS:
            self._wait = self._pause.next()

    def due(self, now: float) -> float:
        """Return the time for a repair that is requested now."""
        if self._recent and now - self._recent[-1] >= _CONFLICT_OVER:
            self._recent, self._wait = [], 0.0
            self._pause.reset()
        last = self._recent[-1] if self._recent else now
        return max(now, last + self._wait)


class ReadbackSchedule:
    """The time of the next read-back, and the program whose change requires it; in seconds.

    The first sync always reads the kernel back.
    """

    def __init__(self, now: float) -> None:
        self._limiter = RepairLimiter()
        # Monotonic times are above 0, so this is due already.
        self._due: float | None = 0.0
        self._cause = ""
        self._needs_routing = True
        self._sets: frozenset[str] | None = frozenset()
        self._read: frozenset[str] | None = None
        self._last = now

    @property
    def due(self) -> float | None:
        """The time of the next read-back; None if none is scheduled."""
        return self._due

    def is_due(self, now: float) -> bool:
        """Return whether a sync that begins now reads the kernel back."""
        return self._due is not None and self._due <= now

    @property
    def needs_routing(self) -> bool:
        """Whether the next read-back is of no use without the routings of all Services."""
        return self._needs_routing

    @property
    def sets(self) -> frozenset[str] | None:
        """The sets to read back, None for all."""
        return self._sets

    def request(self, now: float) -> None:
        """Schedule a read-back at once, after a failed write."""
        self._due = now
        # Part of the write may be in the kernel, which is not what was committed.
        self._needs_routing = True

    def drifted(self, now: float, by: str, sets: frozenset[str] | None = None) -> None:
        """Schedule a read-back after a change by another program, to these sets or to any."""
        when = max(self._limiter.due(now), self._last + _MIN_READBACK_PERIOD)
        self._schedule(when, by, sets)

    def audit_is_due(self, now: float) -> bool:
        """Return whether no read-back is scheduled and the last one, or audit, is long ago."""
        return now - self._last >= _AUDIT_PERIOD and self._due is None

    def audited(self, now: float) -> None:
        """Record an audit that began without a read-back."""
        self._last = now

    def done(self, now: float) -> str:
        """Record a read-back; return the program that requested it, empty for none."""
        cause, self._cause = self._cause, ""
        self._last, self._due = now, None
        self._needs_routing = False
        self._read, self._sets = self._sets, frozenset()
        return cause

    def repaired(self, now: float, by: str) -> bool:
        """Record a repair and schedule its verification; return whether a new delay began.

        The verification finds changes that were made during our own transaction, for which no
        notification may arrive.
        """
        delayed = self._limiter.delays
        self._limiter.repaired(now)
        self._schedule(self._limiter.due(now + _VERIFY_AFTER), by, self._read)
        return self._limiter.delays and not delayed

    def _schedule(self, when: float, cause: str, sets: frozenset[str] | None = None) -> None:
        self._sets = None if self._sets is None or sets is None else self._sets | sets
        if self._due is None or when < self._due:
            self._due = when
        # Several programs may write before one read-back; the first one is named.
        self._cause = self._cause or cause
