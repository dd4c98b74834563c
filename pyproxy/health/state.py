"""Whether this node's proxy does its work: the one value behind all health endpoints."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec


class Report(msgspec.Struct, frozen=True):
    """Health at one moment; times are in nanoseconds since the epoch, 0 for never.

    `settled` says that no sync is due.
    """

    now: int
    last_updated: int
    healthy: bool
    settled: bool
    node_eligible: bool


class Health:
    """Health, told by the agent and asked by the servers' thread.

    Unhealthy until the first commit, and whenever a sync has been due for twice the sync period:
    kube-proxy's rule, but for the start, where kube-proxy calls itself healthy although it serves
    nothing yet. `clock` gives monotonic seconds and `wall_clock` nanoseconds since the epoch.
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

    def node_seen(self, eligible: bool) -> None:
        """The Node is, or is no longer, one that load balancers should send to."""
        with self._lock:
            self._node_eligible = eligible

    def is_healthy(self) -> bool:
        """Whether the proxy works, whatever becomes of its node."""
        return self.report().healthy

    def report(self) -> Report:
        """Take health as it is now."""
        with self._lock:
            late = self._due_since is not None and self._clock() - self._due_since >= self._patience
            return Report(
                now=self._wall_clock(),
                last_updated=self._last_updated,
                healthy=self._last_updated > 0 and not late,
                settled=self._due_since is None,
                node_eligible=self._node_eligible,
            )
