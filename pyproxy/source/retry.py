"""When to ask the API server again, and when to say that it is away."""

from __future__ import annotations

import logging
import threading
import time
from random import Random
from typing import Protocol

from pyproxy.errors import SourceError
from pyproxy.model.objects import Kind
from pyproxy.source.client import ApiStatusError, UnreachableError

log = logging.getLogger(__name__)

FIRST_DELAY = 0.2
"""Seconds: the ceiling of the first delay after a failure."""

LONGEST_DELAY = 30.0
"""Seconds: the ceiling that delays grow to."""

LONGEST_RETRY_AFTER = 120.0
"""Seconds: a server that asks for a longer pause does not get it."""


class Clock(Protocol):
    """Time as a source sees it."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        """Let time pass, or less of it when there is word to stop."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        """Seconds of time.monotonic."""
        return time.monotonic()

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        """Sleep, or less when there is word to stop."""
        stopping.wait(seconds)


class Backoff:
    """Delays that double up to a ceiling, each drawn from zero to where the doubling has come.

    Drawing from the whole width is what spreads a thousand nodes that lost the same server at the
    same moment.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._ceiling = FIRST_DELAY

    def next(self, error: SourceError) -> float:
        """Seconds to wait after one more failure, and at least what the server asked for."""
        delay = self._random.uniform(0, self._ceiling)
        self._ceiling = min(self._ceiling * 2, LONGEST_DELAY)
        asked = error.retry_after if isinstance(error, ApiStatusError) else 0.0
        return delay + min(asked, LONGEST_RETRY_AFTER)

    def reset(self) -> None:
        """Start again: something succeeded."""
        self._ceiling = FIRST_DELAY


class OutageLog:
    """Says once that the server is away and once that it is back, for all kinds together.

    What it says wrong about one kind (a missing right, an answer that is no list) is said once
    for that kind, and once more when the kind of trouble changes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unreachable: set[Kind] = set()
        self._troubles: dict[Kind, tuple[type[SourceError], int]] = {}

    def lost(self, kind: Kind, error: SourceError) -> None:
        """Note that a request failed."""
        with self._lock:
            if isinstance(error, UnreachableError):
                if not self._unreachable:
                    log.warning("the API server is away, what is known stays in force: %s", error)
                self._unreachable.add(kind)
                return
            trouble = type(error), error.status if isinstance(error, ApiStatusError) else 0
            if self._troubles.get(kind) != trouble:
                log.warning("%s objects cannot be followed: %s", kind.value, error)
            self._troubles[kind] = trouble

    def over(self, kind: Kind) -> None:
        """Note that a request succeeded."""
        with self._lock:
            if kind in self._unreachable:
                self._unreachable.remove(kind)
                if not self._unreachable:
                    log.info("the API server is back")
            if self._troubles.pop(kind, None):
                log.info("%s objects can be followed again", kind.value)
