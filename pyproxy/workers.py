"""Threads that go on after a failure that nobody foresaw."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from pyproxy.backoff import Backoff

FIRST_PAUSE = 1.0
"""Seconds from a failure to the next beginning."""

LONGEST_PAUSE = 30.0
"""Seconds that the pauses of a worker that keeps failing grow to."""

_RECOVERED = 60.0
"""Seconds of work after which the next failure counts as the first one."""


class Worker(threading.Thread):
    """A daemon thread that begins its body again where that raises.

    A body knows its own errors and lives with them, so whatever else it raises is a mistake in
    the program. It goes to `threading.excepthook` like that of any thread, but one mistake must not
    stop what the rest of the process relies on. A body that returns has ended for good.
    """

    def __init__(self, name: str, body: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._body = body
        self._ending = threading.Event()

    def end(self, timeout: float = 0.0) -> None:
        """Begin the body no more, and give it so many seconds to return; harmless before `start`.

        Telling the body itself to return is for whoever made it.
        """
        self._ending.set()
        if self.is_alive():
            self.join(timeout)

    def run(self) -> None:
        """Do the work."""
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                self._body()
            except Exception:
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self)))
            else:
                return
            if time.monotonic() - began > _RECOVERED:
                backoff.reset()
            self._ending.wait(backoff.next())
