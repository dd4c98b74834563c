"""The times that the kernel counts for a thread: on a processor, and waiting for one.

Fact: Documentation/scheduler/sched-stats.rst. The second number of schedstat is the time in
nanoseconds that the task was runnable and did not run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

_SCHEDSTAT = "/proc/thread-self/schedstat"
_READ_SIZE = 96


class ThreadTimes(msgspec.Struct, frozen=True):
    """The times of one thread in seconds; it alone may call the functions.

    `cpu` is the time that it ran, `run_delay` that it waited for a processor.
    """

    cpu: Callable[[], float]
    run_delay: Callable[[], float]


@contextmanager
def thread_times() -> Iterator[ThreadTimes]:
    """Yield the times of the calling thread; a run delay of 0 on a kernel without schedstat.

    A call takes one or two microseconds.
    """
    try:
        file = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield ThreadTimes(time.thread_time, lambda: 0.0)
        return
    try:
        yield ThreadTimes(
            time.thread_time, lambda: int(os.pread(file, _READ_SIZE, 0).split()[1]) / 1e9
        )
    finally:
        os.close(file)
