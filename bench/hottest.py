"""Where the time and the memory of the first sync go."""

from __future__ import annotations

import cProfile
import gc
import pstats
import time
import tracemalloc
from collections.abc import Callable

from pyproxy_lab.bench.figures import duration, heading, mebibytes, row
from pyproxy_lab.bench.shape import Size

from bench.inside import Inside, inside, lists

_SHOWN = 25
_SMALLEST = 1 << 19


class Collections:
    """How long Python's garbage collector has been at work since this was made."""

    def __init__(self) -> None:
        self._seconds = self._began = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self._seconds += time.perf_counter() - self._began

    def end(self) -> float:
        """Return the seconds, and stop."""
        gc.callbacks.remove(self._note)
        return self._seconds


def print_hottest(size: Size) -> None:
    """Print the parts of a first sync, its hottest functions, and what it leaves in memory."""
    events = lists(size)
    print(f"the first sync of {size}")
    with inside() as agent:
        heading("Parts, without the profiler")
        collections = Collections()
        _timed("hearing the lists", lambda: agent.handle_event(events))
        _timed("the sync", agent.agent.sync)
        row("of both, garbage collection", duration(collections.end()))
    with inside() as agent:
        agent.handle_event(events)
        profile = cProfile.Profile()
        profile.runcall(agent.agent.sync)
        heading("Functions, by the time in themselves")
        pstats.Stats(profile).sort_stats("tottime").print_stats(_SHOWN)
    with inside() as agent:
        agent.handle_event(events)
        _print_memory(agent)


def _timed(what: str, do: Callable[[], None]) -> None:
    began = time.perf_counter()
    do()
    row(what, duration(time.perf_counter() - began))


def _print_memory(agent: Inside) -> None:
    tracemalloc.start()
    agent.agent.sync()
    kept, peak = tracemalloc.get_traced_memory()
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    heading("Memory of the sync alone")
    row("at its peak", mebibytes(peak))
    row("kept", mebibytes(kept))
    for statistic in snapshot.statistics("lineno"):
        if statistic.size < _SMALLEST:
            break
        frame = statistic.traceback[0]
        place = "/".join(frame.filename.split("/")[-3:])
        row(f"{place}:{frame.lineno}", mebibytes(statistic.size))
