"""Failures in threads: each is logged and counted, and shows in the agent's health.

Python alone would print the traceback, and a healthy agent would go on without the thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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

    def report(args: threading.ExceptHookArgs) -> None:
        # As in Python's own hook: SystemExit ends a thread on purpose.
        if args.exc_type is SystemExit:
            return
        thread = args.thread
        name = thread.name if thread is not None else "(unknown)"
        restarts = isinstance(thread, Worker)
        log.error(
            "thread %s failed, which is a bug in pyproxy: it %s",
            name,
            "restarts" if restarts else "is gone",
            # The value may be None, and logging needs an exception.
            exc_info=(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback),
        )
        metrics.worker_failed(name)
        health.worker_failed(name, restarting=restarts)

    previous = threading.excepthook
    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = previous
