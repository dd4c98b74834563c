"""The health of the proxy on this node: the state behind all health endpoints."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec

HEARTBEAT_TIMEOUT = 30.0
"""Seconds without a heartbeat after which the agent's thread counts as stuck.

An idle agent sends one every two seconds; the first sync of 100,000 endpoints takes a few seconds.
"""

_FAILURES = 3
"""Consecutive failures of one worker that make the agent unhealthy."""

_FAILURES_APART = 60.0
"""Seconds after which a worker's failures are no longer consecutive."""


class HealthReport(msgspec.Struct, frozen=True):
    """Health at one moment; times are in nanoseconds since the epoch, 0 for never.

    `settled` means that no sync is due, `shutting_down` that the agent is stopping.
    """

    now: int
    last_updated: int
    healthy: bool
    settled: bool
    node_eligible: bool
    shutting_down: bool = False


class Health:
    """Health, written by the agent and read by the thread of the servers. Thread-safe.

    Unhealthy while a sync has been due for twice the sync period, as in kube-proxy. Unlike
    kube-proxy, also unhealthy until the first commit, while the agent's thread has no heartbeat,
    while a worker keeps failing, and after a thread has ended for good. `clock` returns monotonic
    seconds, `wall_clock` nanoseconds since the epoch.
    """

    def __init__(
        self,
        sync_period: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._sync_timeout = 2 * sync_period
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._due_since: float | None = None
        self._last_updated = 0
        self._node_eligible = True
        self._last_heartbeat: float | None = None
        self._shutting_down = False
        self._failures: dict[str, tuple[int, float]] = {}
        self._gone = False

    def queued(self) -> None:
        """Record that a sync is due; only the first call since the last commit counts."""
        # Without the lock, because the agent's thread, which alone writes it, calls this for each
        # object of the first lists.
        if self._due_since is None:
            with self._lock:
                self._due_since = self._clock()

    def updated(self) -> None:
        """Record that the kernel state is the desired state."""
        with self._lock:
            self._due_since = None
            self._last_updated = self._wall_clock()

    def set_node_eligible(self, eligible: bool) -> None:
        """Set whether load balancers should send to this node."""
        with self._lock:
            self._node_eligible = eligible

    def heartbeat(self) -> None:
        """Record that the agent's thread is running; expected regularly after the first call."""
        # No lock for one assignment, because this runs after each batch of events.
        self._last_heartbeat = self._clock()

    def set_shutting_down(self) -> None:
        """Record that the agent stops. Any thread; does not block."""
        self._shutting_down = True

    def worker_failed(self, name: str, *, restarting: bool) -> None:
        """Record that a worker failed, and whether it is restarted."""
        now = self._clock()
        with self._lock:
            count, last = self._failures.get(name, (0, now))
            self._failures[name] = (count + 1 if now - last < _FAILURES_APART else 1, now)
            self._gone |= not restarting

    def is_healthy(self) -> bool:
        """Return whether the proxy works and does not stop, regardless of its node."""
        report = self.report()
        return report.healthy and not report.shutting_down

    def report(self) -> HealthReport:
        """Return the health at this moment."""
        with self._lock:
            now = self._clock()
            late = self._due_since is not None and now - self._due_since >= self._sync_timeout
            stuck = (
                self._last_heartbeat is not None and now - self._last_heartbeat >= HEARTBEAT_TIMEOUT
            )
            working = not (late or stuck or self._gone or self._failing(now))
            return HealthReport(
                now=self._wall_clock(),
                last_updated=self._last_updated,
                healthy=self._last_updated > 0 and working,
                settled=self._due_since is None,
                node_eligible=self._node_eligible,
                shutting_down=self._shutting_down,
            )

    def _failing(self, now: float) -> bool:
        return any(
            count >= _FAILURES and now - last < _FAILURES_APART
            for count, last in self._failures.values()
        )
