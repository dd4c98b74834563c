"""The data of the page's charts: changes, latencies and connections of the last ten minutes."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from pyproxy.dataplane.connections import ConnectionCounters, Totals
from pyproxy.errors import PyproxyError
from pyproxy.inspect.snapshot import AgentView, Change
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

SECONDS = 600
"""Length of a timeline."""

COUNT_EVERY = 5.0
"""Seconds between two reads of the counters."""

_STOP_TIMEOUT = 2.0

_DISORDER = 5
"""Seconds that a moment may arrive late; an earlier one means that the clock was set back."""


class Moment(msgspec.Struct, frozen=True):
    """One second of a timeline.

    `second` is since the epoch. `latency` and `sync_duration` are the maximum of the second's
    changes, in seconds; None without changes. `connections` is the number of new connections, None
    if they were not counted.
    """

    second: int
    changes: int = 0
    latency: float | None = None
    sync_duration: float | None = None
    connections: float | None = None


class Timeline:
    """The last `SECONDS` moments. Thread-safe.

    When the wall clock is set back, the moments after its new time are dropped.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moments: OrderedDict[int, Moment] = OrderedDict()
        self._newest = 0
        self._changes = 0

    def changes(self) -> int:
        """Return the number of changes so far."""
        return self._changes

    def add_change(self, change: Change) -> None:
        """Record a change in the second of its commit."""
        with self._lock:
            self._changes += 1
            moment = self._at(int(change.ended))
            self._put(
                msgspec.structs.replace(
                    moment,
                    changes=moment.changes + 1,
                    latency=_max(moment.latency, change.latency),
                    sync_duration=_max(moment.sync_duration, change.sync_duration),
                )
            )

    def add_connections(self, second: int, rate: float) -> None:
        """Record the rate of new connections per second."""
        with self._lock:
            self._put(msgspec.structs.replace(self._at(second), connections=rate))

    def moments(self, now: float) -> tuple[Moment, ...]:
        """Return the moments of the last `SECONDS`, oldest first, and none after `now`."""
        with self._lock:
            found = [each for each in self._moments.values() if now - SECONDS < each.second <= now]
        return tuple(sorted(found, key=lambda each: each.second))

    def _at(self, second: int) -> Moment:
        if second < self._newest - _DISORDER:
            for each in [each for each in self._moments if each >= second]:
                del self._moments[each]
            self._newest = second
        self._newest = max(self._newest, second)
        return self._moments.get(second) or Moment(second)

    def _put(self, moment: Moment) -> None:
        self._moments[moment.second] = moment
        # Seconds arrive nearly in order, so the first one is the oldest.
        while len(self._moments) > SECONDS:
            self._moments.popitem(last=False)


def _max(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else max(one, other)


class ConnectionCounter:
    """Counts new connections to all Services: one counter for each frontend, not each endpoint."""

    def __init__(self, counters: ConnectionCounters) -> None:
        self._reader = counters
        self._before: Totals | None = None

    def count(self) -> int | None:
        """Return the connections since the last call, None at the first. Raises KernelError."""
        # After an error the next count starts anew, instead of covering the gap.
        before, self._before = self._before, None
        self._before = now = self._reader.services()
        return None if before is None else sum(now.since(before).values())

    def close(self) -> None:
        """Close the socket."""
        self._reader.close()


class Recorder:
    """A thread that fills a timeline from the agent's changes and connection counters.

    `count` returns the connections since its last call, None if unknown, and may raise PyproxyError
    and OSError. It is called every `COUNT_EVERY` seconds while `has_viewers` returns true, because
    it reads all frontends.
    `wall_clock` returns seconds since the epoch, `clock` monotonic ones.
    """

    def __init__(
        self,
        agent: AgentView,
        timeline: Timeline,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
        count: Callable[[], int | None],
        has_viewers: Callable[[], bool],
    ) -> None:
        self._agent = agent
        self._timeline = timeline
        self._wall_clock = wall_clock
        self._clock = clock
        self._count = count
        self._has_viewers = has_viewers
        self._counted_at: float | None = None
        self._stopping = threading.Event()
        self._thread = Worker("timeline", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, within about a second."""
        self._stopping.set()
        self._thread.end(_STOP_TIMEOUT)

    def _run(self) -> None:
        with self._agent.watch() as changes:
            # `watch` yields after a second without a change too, which drives the counters.
            for batch in changes:
                if self._stopping.is_set():
                    return
                for change in batch:
                    self._timeline.add_change(change)
                self.record_connections()

    def record_connections(self) -> None:
        """Read the counters if they are due and the page has viewers."""
        now, last = self._clock(), self._counted_at
        if not self._has_viewers():
            self._counted_at = None
            return
        if last is not None and now - last < COUNT_EVERY:
            return
        self._counted_at = now
        try:
            connections = self._count()
        except (PyproxyError, OSError) as error:
            log.debug("cannot read the connection counters: %s", error)
            return
        # The first count after a pause without viewers covers an unknown time.
        if connections is not None and last is not None:
            self._timeline.add_connections(int(self._wall_clock()), connections / (now - last))
