"""The last minutes as the page draws them: changes, how late they were, and connections."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from pyproxy.errors import PyproxyError
from pyproxy.inspect.snapshot import AgentView, Change
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

SECONDS = 600
"""How far back the page looks."""

COUNT_EVERY = 5.0
"""Seconds between two readings of the counters."""

_STOP_TIMEOUT = 2.0


class Moment(msgspec.Struct, frozen=True):
    """What was programmed in one second.

    `second` is since the epoch. `latency` is the worst of its changes, from reading to kernel, and
    `took` the longest commit; both are in seconds, None where nothing was programmed. `connections`
    are new ones in that second, None where they were not counted.
    """

    second: int
    changes: int = 0
    latency: float | None = None
    took: float | None = None
    connections: float | None = None


class Timeline:
    """Moments by second, as many as `SECONDS` at most; any thread may read and write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moments: OrderedDict[int, Moment] = OrderedDict()

    def changed(self, change: Change) -> None:
        """Take note of a change in the second that it was programmed in."""
        with self._lock:
            moment = self._at(int(change.ended))
            self._put(
                msgspec.structs.replace(
                    moment,
                    changes=moment.changes + 1,
                    latency=_worse(moment.latency, change.latency),
                    took=_worse(moment.took, change.took),
                )
            )

    def connected(self, second: int, rate: float) -> None:
        """Take note of how many connections a second were made until this one."""
        with self._lock:
            self._put(msgspec.structs.replace(self._at(second), connections=rate))

    def moments(self, now: float) -> tuple[Moment, ...]:
        """Give the moments that are not too long ago, the oldest first."""
        with self._lock:
            return tuple(
                moment for moment in self._moments.values() if moment.second > now - SECONDS
            )

    def _at(self, second: int) -> Moment:
        return self._moments.get(second) or Moment(second)

    def _put(self, moment: Moment) -> None:
        self._moments[moment.second] = moment
        while len(self._moments) > SECONDS:
            self._moments.popitem(last=False)


def _worse(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else max(one, other)


class Recorder:
    """A thread that fills a timeline from an agent's changes.

    `gained` gives the connections since it was asked last, None where it cannot tell; it is asked
    every few seconds while `watched` says that somebody looks. `clock` is in seconds since the
    epoch.
    """

    def __init__(
        self,
        witness: AgentView,
        timeline: Timeline,
        clock: Callable[[], float],
        gained: Callable[[], int | None],
        watched: Callable[[], bool],
    ) -> None:
        self._witness = witness
        self._timeline = timeline
        self._clock = clock
        self._gained = gained
        self._watched = watched
        self._counted: float | None = None
        self._ending = threading.Event()
        self._thread = Worker("history", self._run)

    def start(self) -> None:
        """Begin to record."""
        self._thread.start()

    def stop(self) -> None:
        """End within about a second."""
        self._ending.set()
        self._thread.end(_STOP_TIMEOUT)

    def _run(self) -> None:
        with self._witness.follow() as changes:
            for change in changes:
                if self._ending.is_set():
                    return
                if change is not None:
                    self._timeline.changed(change)
                self.count()

    def count(self) -> None:
        """Read the counters where it is time to, and somebody looks."""
        now, last = self._clock(), self._counted
        if not self._watched():
            self._counted = None
            return
        if last is not None and now - last < COUNT_EVERY:
            return
        self._counted = now
        try:
            gained = self._gained()
        except PyproxyError as error:
            log.debug("cannot read the counters: %s", error)
            return
        # What came while nobody looked belongs to no second.
        if gained is not None and last is not None:
            self._timeline.connected(int(now), gained / (now - last))
