"""Whether this node's proxy does its work: the one value behind all health endpoints."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec

BEAT_PATIENCE = 30.0
"""Seconds without a beat after which the agent's thread is taken for stuck.

It beats every second while nothing happens; the first sync of 100,000 endpoints takes a few.
"""

_FAILURES = 3
"""Failures of one worker in a row that are more than an accident."""

_FAILURES_APART = 60.0
"""Seconds that a worker must last for its next failure not to be in a row with the last one."""


class HealthReport(msgspec.Struct, frozen=True):
    """Health at one moment; times are in nanoseconds since the epoch, 0 for never.

    `settled` says that no sync is due, `shutting_down` that the agent was told to end.
    """

    now: int
    last_updated: int
    healthy: bool
    settled: bool
    node_eligible: bool
    shutting_down: bool = False


class Health:
    """Health, told by the agent and asked by the servers' thread.

    Unhealthy until the first commit, and whenever a sync has been due for twice the sync period,
    be it that syncs fail or that none begins: kube-proxy's rule, but for the start, where
    kube-proxy calls itself healthy although it serves nothing yet. Unhealthy too while the agent's
    thread does not beat, while one of its workers keeps failing, and once one is gone for good.
    `clock` gives monotonic seconds and `wall_clock` nanoseconds since the epoch.
    """

    def __init__(
        self,
        sync_period: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._patience = 2 * sync_period
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._due_since: float | None = None
        self._last_updated = 0
        self._node_eligible = True
        self._beat: float | None = None
        self._shutting_down = False
        self._failures: dict[str, tuple[int, float]] = {}
        self._gone = False

    def queued(self) -> None:
        """A sync is due; only the first call since the last commit counts."""
        with self._lock:
            if self._due_since is None:
                self._due_since = self._clock()

    def updated(self) -> None:
        """The kernel holds what it should."""
        with self._lock:
            self._due_since = None
            self._last_updated = self._wall_clock()

    def set_node_eligible(self, eligible: bool) -> None:
        """The Node is, or is no longer, one that load balancers should send to."""
        with self._lock:
            self._node_eligible = eligible

    def heartbeat(self) -> None:
        """The agent's thread goes round; from the first call on it is expected to."""
        self._beat = self._clock()

    def set_shutting_down(self) -> None:
        """The agent was told to end. May be called by a signal handler, so it takes no lock."""
        self._shutting_down = True

    def worker_failed(self, name: str, *, restarting: bool) -> None:
        """A thread failed; `restarting` says that it begins again."""
        now = self._clock()
        with self._lock:
            count, last = self._failures.get(name, (0, now))
            self._failures[name] = (count + 1 if now - last < _FAILURES_APART else 1, now)
            self._gone |= not restarting

    def is_healthy(self) -> bool:
        """Whether load balancers can count on the proxy, whatever becomes of its node."""
        report = self.report()
        return report.healthy and not report.shutting_down

    def report(self) -> HealthReport:
        """Take health as it is now."""
        with self._lock:
            now = self._clock()
            late = self._due_since is not None and now - self._due_since >= self._patience
            stuck = self._beat is not None and now - self._beat >= BEAT_PATIENCE
            works = not (late or stuck or self._gone or self._failing(now))
            return HealthReport(
                now=self._wall_clock(),
                last_updated=self._last_updated,
                healthy=self._last_updated > 0 and works,
                settled=self._due_since is None,
                node_eligible=self._node_eligible,
                shutting_down=self._shutting_down,
            )

    def _failing(self, now: float) -> bool:
        return any(
            count >= _FAILURES and now - last < _FAILURES_APART
            for count, last in self._failures.values()
        )
