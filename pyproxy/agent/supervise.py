"""Failures in threads: each is logged and counted, and shows in the agent's health.

Python alone would print the traceback, and a healthy agent would go on without the thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from types import TracebackType

from pyproxy.health.state import Health
from pyproxy.metrics import Metrics
from pyproxy.workers import Worker

log = logging.getLogger(__name__)


@contextmanager
def reporting_failures(health: Health, metrics: Metrics) -> Iterator[None]:
    """Report the uncaught exceptions of all threads to `health` and `metrics` inside of it.

    A Worker restarts, so the agent is unhealthy only if it keeps failing. Any other thread is gone,
    so the agent stays unhealthy.
    """
    reported: set[tuple[str, str, int]] = set()

    def report(args: threading.ExceptHookArgs) -> None:
        # As in Python's own hook: SystemExit ends a thread on purpose.
        if args.exc_type is SystemExit:
            return
        thread = args.thread
        name = thread.name if thread is not None else "(unknown)"
        restarts = isinstance(thread, Worker)
        place, line = _place(args.exc_traceback)
        # The value may be None, and logging needs an exception. One traceback of each failure is
        # enough: a thread that keeps failing logs a line each time.
        first = (place, args.exc_type.__name__, line) not in reported
        reported.add((place, args.exc_type.__name__, line))
        value = args.exc_value or args.exc_type()
        log.error(
            "thread %s failed, which is a bug in pyproxy: it %s: %s in %s, line %d",
            name,
            "restarts" if restarts else "is gone",
            args.exc_type.__name__,
            place,
            line,
            exc_info=(args.exc_type, value, args.exc_traceback) if first else None,
        )
        metrics.process.worker_failed(name)
        health.worker_failed(name, restarting=restarts)

    previous = threading.excepthook
    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = previous


def _place(traceback: TracebackType | None) -> tuple[str, int]:
    """Return the file and the line at which an exception was raised."""
    frames = extract_tb(traceback)
    return (Path(frames[-1].filename).name, frames[-1].lineno or 0) if frames else ("?", 0)
