"""Slow responses: one thread makes them one at a time, and repetitions get the last one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from pyproxy.workers import Worker

_STOP_TIMEOUT = 0.5


class SlowThread:
    """Runs jobs one after the other between `start` and `stop`.

    Python runs one thread at a time, so that slow responses in parallel would only delay the
    agent's thread more.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = Worker("http-slow", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the present job. Blocks for half a second at most; idempotent."""
        self._jobs.put(None)
        self._thread.end(_STOP_TIMEOUT)

    def put(self, job: Callable[[], None]) -> None:
        """Run a job after those before it. Any thread; does not block."""
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class Recent:
    """Makes a value with `make`, and returns the same one again for a while.

    A value is used for `ratio` times the seconds of CPU time that it took, so that any number of
    requests use a share of 1 / (`ratio` + 1) of one core at most. Thread-safe; blocks for `make`.
    """

    def __init__(
        self,
        make: Callable[[], bytes],
        ratio: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._make = make
        self._ratio = ratio
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._lock = threading.Lock()
        self._value = b""
        self._until = float("-inf")

    def get(self) -> bytes:
        """Return a value that was made recently, or a new one."""
        with self._lock:
            if self._clock() >= self._until:
                began = self._cpu_clock()
                self._value = self._make()
                self._until = self._clock() + self._ratio * (self._cpu_clock() - began)
            return self._value
