"""Threads that restart after an unexpected failure."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from pyproxy.backoff import Backoff

FIRST_PAUSE = 1.0
"""Seconds from the first failure to the restart."""

LONGEST_PAUSE = 30.0
"""The longest pause in seconds of a worker that keeps failing."""

_RECOVERED = 60.0
"""Seconds of work after which the next failure is a first one again."""


class Worker(threading.Thread):
    """A daemon thread that calls its body again after an exception.

    A body handles the errors that it expects, so any other exception is a bug. It goes to
    `threading.excepthook` as in any thread, but must not stop a part that the rest of the process
    relies on. A body that returns is not called again.
    """

    def __init__(self, name: str, body: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._body = body
        self._ending = threading.Event()

    def end(self, timeout: float = 0.0) -> None:
        """Restart the body no more, and wait up to `timeout` seconds for its return.

        The caller makes the body itself return. Any thread; does nothing before `start`.
        """
        self._ending.set()
        if self.is_alive():
            self.join(timeout)

    def run(self) -> None:
        """Call the body, again after each exception, until it returns."""
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                self._body()
            except Exception:
                # Called by hand, because an exception that leaves `run` would end the thread.
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self)))
            else:
                return
            if time.monotonic() - began > _RECOVERED:
                backoff.reset()
            # Not sleep, so that `end` interrupts the pause.
            self._ending.wait(backoff.next())
