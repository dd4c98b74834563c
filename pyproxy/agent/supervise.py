"""What becomes of a failure in a thread that nobody foresaw: it is logged, counted and felt.

Without this Python would print it, and the agent would go on without the thread and call itself
healthy.
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
def reported(health: Health, metrics: Metrics) -> Iterator[None]:
    """Inside it, what ends any thread of the process is told to `health` and `metrics`.

    A Worker begins again, and only one that keeps failing makes the agent unhealthy. The end of
    any other thread does so for good.
    """

    def failed(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is SystemExit:
            return
        thread = args.thread
        name = thread.name if thread is not None else "(unknown)"
        again = isinstance(thread, Worker)
        log.error(
            "the thread %s failed, which is a mistake in pyproxy: it %s",
            name,
            "begins again" if again else "is gone",
            exc_info=(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback),
        )
        metrics.worker_failed(name)
        health.worker_failed(name, restarting=again)

    before = threading.excepthook
    threading.excepthook = failed
    try:
        yield
    finally:
        threading.excepthook = before
