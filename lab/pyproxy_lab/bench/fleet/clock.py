"""A clock that runs faster than the machine's, so that an hour takes a minute."""

from __future__ import annotations

import threading
import time


class FastClock:
    """The clock of a source; its seconds are `speed` times as short."""

    def __init__(self, speed: float) -> None:
        self._speed = speed

    def now(self) -> float:
        """Return monotonic seconds of this clock."""
        return time.monotonic() * self._speed

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        """Block for seconds of this clock, or until `stopping` is set."""
        stopping.wait(seconds / self._speed)
