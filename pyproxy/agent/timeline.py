"""Where the time of a change goes: from its first byte to the end of its commit's listeners.

Each phase goes into a histogram. One change of each commit, its oldest, may be among the slowest,
which are kept with what else happened meanwhile. Memory is bounded: 20 changes for each of two
hours, and the last 64 activities.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from pyproxy.agent.pending import Arrival
from pyproxy.agent.thread_times import ThreadTimes, thread_times
from pyproxy.inspect.slow_changes import CAPACITY, Cause, Phases, SlowChange, SlowChanges
from pyproxy.metrics.changes import ChangeMetrics

PERIOD = 3600.0
"""Seconds for which the slowest changes are kept, and as long again at most."""

REMEMBERED = 64
"""Activities that are kept."""

_SHORTEST = 0.001
"""Seconds that an activity lasts at least to be kept."""

_LEAST_CAUSE = 0.0001
"""Seconds of a cause that is shown."""


class Activity(enum.StrEnum):
    """The kinds of work that delay a change besides its own commit."""

    GC = "garbage collection"
    COMMIT = "another commit"
    READ_BACK = "read-back"
    FAILED_SYNC = "failed sync"
    PERIODIC = "periodic checks"
    QUERY = "query"
    ADDRESSES = "reading addresses"
    SPARE = "health check ports"


RUN_DELAY = "waiting for a processor"
"""The kernel's run delay of the agent's thread, since a sample shortly before."""

_SAMPLE_PERIOD = 0.01
"""Seconds between two samples of the run delay, each of which takes 1.6 microseconds."""

OFF_CPU = "not running"
"""The time of the step in which its thread did not run: it waited for a processor, for Python's
lock, or for the kernel."""


class _Span(msgspec.Struct, frozen=True, gc=False):
    """An activity between two monotonic times."""

    activity: Activity
    began: float
    ended: float


class Activities:
    """The last activities that took a millisecond or more. Any thread may add to them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Appending to a deque is atomic, and a collection may run in any thread.
        self._spans: deque[_Span] = deque(maxlen=REMEMBERED)
        self._collecting = 0.0

    def note(self, activity: Activity, began: float) -> None:
        """Record an activity that ends now."""
        ended = self._clock()
        if ended - began >= _SHORTEST:
            self._spans.append(_Span(activity, began, ended))

    @contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """Record what happens inside as one activity."""
        began = self._clock()
        try:
            yield
        finally:
            self.note(activity, began)

    def collection(self, phase: str, _: object) -> None:
        """Record garbage collections: a callback for gc.callbacks."""
        # No collection begins within another one.
        if phase == "start":
            self._collecting = self._clock()
        else:
            self.note(Activity.GC, self._collecting)

    def within(self, began: float, ended: float) -> dict[str, float]:
        """Return the seconds of each activity between two times."""
        found: dict[str, float] = {}
        for span in tuple(self._spans):
            seconds = min(span.ended, ended) - max(span.began, began)
            if seconds > 0:
                found[span.activity] = found.get(span.activity, 0.0) + seconds
        return found


class StepTimes(msgspec.Struct, gc=False):
    """The monotonic times of one step: its begin, the end of its plan, and of its commit.

    `kernel` are the commit's seconds of sending, `cpu` is the thread's CPU time at the begin.
    """

    began: float
    planned: float = 0.0
    committed: float = 0.0
    kernel: float = 0.0
    cpu: float = 0.0


class Timeline:
    """The phases of all changes, as metrics, and the slowest changes one by one.

    Its methods are for the agent's thread, except those of `activities`.
    """

    def __init__(
        self, clock: Callable[[], float], wall_clock: Callable[[], float], metrics: ChangeMetrics
    ) -> None:
        self.activities = Activities(clock)
        self._thread: ThreadTimes | None = None
        self._clock = clock
        self._wall_clock = wall_clock
        self._metrics = metrics
        self._slowest = Slowest(clock(), wall_clock())
        self._delayed = 0.0
        self._sampled = 0.0

    @contextmanager
    def reading_thread_times(self) -> Iterator[None]:
        """Inside it, read the CPU time and the run delay of the calling thread."""
        with thread_times() as found:
            self._thread = found
            try:
                yield
            finally:
                self._thread = None

    def begin(self, now: float) -> StepTimes:
        """Return the times of a step that begins now."""
        return StepTimes(now, cpu=self._thread.cpu() if self._thread else 0.0)

    def finished(self, times: StepTimes, arrivals: Sequence[Arrival], *, reads: bool) -> None:
        """Record the changes of a step whose listeners are done; `reads` if it read the kernel."""
        now = self._clock()
        if arrivals:
            self._count(times, arrivals, now)
            oldest = min(arrivals, key=_read_at) if len(arrivals) > 1 else arrivals[0]
            if self._slowest.admits(now - oldest.read_at, now, self._wall_clock):
                self._slowest.add(
                    SlowChange(
                        oldest.kind.value,
                        oldest.name.namespace,
                        oldest.name.name,
                        self._wall_clock(),
                        now - oldest.read_at,
                        phases(times, oldest, now),
                        self._causes(times, oldest.read_at, now),
                        len(arrivals) - 1,
                    )
                )
        if now - self._sampled >= _SAMPLE_PERIOD:
            self._sample(now)
        activity = Activity.READ_BACK if reads else Activity.COMMIT
        self.activities.note(activity, times.began)

    def slowest(self) -> SlowChanges:
        """Return the slowest changes of the last hour or two."""
        return self._slowest.found(self._clock(), self._wall_clock)

    def _sample(self, now: float) -> float:
        """Read the run delay of the thread; return the seconds since the last sample."""
        before, self._sampled = self._delayed, now
        if self._thread is not None:
            self._delayed = self._thread.run_delay()
        return self._delayed - before

    def _causes(self, times: StepTimes, read_at: float, now: float) -> tuple[Cause, ...]:
        causes = self.activities.within(read_at, now)
        if self._thread is not None:
            causes[RUN_DELAY] = min(self._sample(now), now - read_at)
            causes[OFF_CPU] = now - times.began - (self._thread.cpu() - times.cpu)
        return tuple(
            Cause(str(kind), seconds) for kind, seconds in causes.items() if seconds >= _LEAST_CAUSE
        )

    def _count(self, times: StepTimes, arrivals: Sequence[Arrival], now: float) -> None:
        metrics, count = self._metrics.phases, len(arrivals)
        for each in arrivals:
            metrics.add("decode", each.decoded_at - each.read_at)
            metrics.add("queue", each.taken_at - each.decoded_at)
            metrics.add("wait", times.began - each.taken_at)
            self._metrics.latency.add("", times.committed - each.read_at)
        # These are the same for all changes of a step.
        metrics.add("plan", times.planned - times.began, count)
        metrics.add("pack", times.committed - times.planned - times.kernel, count)
        metrics.add("kernel", times.kernel, count)
        metrics.add("listeners", now - times.committed, count)


def phases(times: StepTimes, arrival: Arrival, ended: float) -> Phases:
    """Return the phases of one change; they add up to the time from its reading to `ended`."""
    return Phases(
        decode=arrival.decoded_at - arrival.read_at,
        queue=arrival.taken_at - arrival.decoded_at,
        wait=times.began - arrival.taken_at,
        plan=times.planned - times.began,
        pack=times.committed - times.planned - times.kernel,
        kernel=times.kernel,
        listeners=ended - times.committed,
    )


_Heap = list[tuple[float, int, SlowChange]]


class Slowest:
    """The slowest changes of this period and of the one before it, 20 of each."""

    def __init__(self, now: float, wall_now: float) -> None:
        self._until = now + PERIOD
        self._since = self._since_before = wall_now
        self._heap: _Heap = []
        self._before: _Heap = []
        self._count = 0

    def admits(self, seconds: float, now: float, wall_clock: Callable[[], float]) -> bool:
        """Return whether a change that took so many seconds belongs to the slowest ones."""
        self._begin_period(now, wall_clock)
        return len(self._heap) < CAPACITY or seconds > self._heap[0][0]

    def add(self, change: SlowChange) -> None:
        """Add a change, in place of the least slow one if there are enough."""
        # The number decides between equal times, because changes themselves cannot be compared.
        self._count += 1
        item = (change.seconds, self._count, change)
        if len(self._heap) < CAPACITY:
            heapq.heappush(self._heap, item)
        else:
            heapq.heapreplace(self._heap, item)

    def found(self, now: float, wall_clock: Callable[[], float]) -> SlowChanges:
        """Return the slowest changes of both periods, the slowest first."""
        self._begin_period(now, wall_clock)
        found = heapq.nlargest(CAPACITY, [*self._heap, *self._before], key=lambda item: item[0])
        return SlowChanges(self._since_before, tuple(change for _, _, change in found))

    def _begin_period(self, now: float, wall_clock: Callable[[], float]) -> None:
        """Begin the next period if the present one has ended."""
        if now >= self._until:
            # A quiet hour in between leaves nothing of the one before.
            skipped = now >= self._until + PERIOD
            wall_now = wall_clock()
            self._before, self._heap = [] if skipped else self._heap, []
            self._since_before = wall_now if skipped else self._since
            self._since, self._until = wall_now, now + PERIOD


def _read_at(arrival: Arrival) -> float:
    return arrival.read_at
