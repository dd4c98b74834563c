"""Delays between requests to a failing API server, and log lines about outages."""

from __future__ import annotations

import logging
import threading
import time
from random import Random
from typing import Protocol

from pyproxy.backoff import Backoff
from pyproxy.errors import SourceError
from pyproxy.model.objects import Kind
from pyproxy.source.client import ApiStatusError, UnreachableError

log = logging.getLogger(__name__)

FIRST_DELAY = 0.2
"""Seconds: the ceiling of the first delay after a failure."""

LONGEST_DELAY = 30.0
"""Seconds: the ceiling that delays grow to."""

LONGEST_RETRY_AFTER = 120.0
"""Seconds: the most that a server's Retry-After can add to a delay."""


class Clock(Protocol):
    """The time as a source sees it."""

    def now(self) -> float:
        """Return monotonic seconds. Never blocks; may be called from any thread."""
        ...

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        """Block the calling thread for `seconds`, or until `stopping` is set."""
        ...


class SystemClock:
    """The monotonic clock of the machine."""

    def now(self) -> float:
        """Return the seconds of time.monotonic."""
        return time.monotonic()

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        """Sleep until `stopping` is set, for `seconds` at most."""
        stopping.wait(seconds)


class ApiBackoff:
    """The delays between requests to an API server that fails, as in client-go with full jitter."""

    def __init__(self, random: Random) -> None:
        self._backoff = Backoff(FIRST_DELAY, LONGEST_DELAY, random)

    def next(self, error: SourceError) -> float:
        """Return the seconds to wait after this failure, the server's Retry-After included."""
        retry_after = error.retry_after if isinstance(error, ApiStatusError) else 0.0
        return self._backoff.next() + min(retry_after, LONGEST_RETRY_AFTER)

    def reset(self) -> None:
        """Start again with the first delay."""
        self._backoff.reset()


class OutageLog:
    """Log lines about failing requests: one when an outage begins and one when it ends.

    An unreachable server is one outage of all kinds together. Any other error (a missing right, a
    malformed list) is logged once for its kind, and again when the error changes. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unreachable: set[Kind] = set()
        self._errors: dict[Kind, tuple[type[SourceError], int]] = {}

    def failed(self, kind: Kind, error: SourceError) -> None:
        """Note that a request for this kind failed."""
        with self._lock:
            if isinstance(error, UnreachableError):
                if not self._unreachable:
                    log.warning(
                        "the API server is unreachable; the last known state stays programmed: %s",
                        error,
                    )
                self._unreachable.add(kind)
                return
            what = type(error), error.status if isinstance(error, ApiStatusError) else 0
            if self._errors.get(kind) != what:
                log.warning("cannot watch %s objects: %s", kind.value, error)
            self._errors[kind] = what

    def succeeded(self, kind: Kind) -> None:
        """Note that a request for this kind succeeded."""
        with self._lock:
            if kind in self._unreachable:
                self._unreachable.remove(kind)
                if not self._unreachable:
                    log.info("the API server is reachable again")
            if self._errors.pop(kind, None):
                log.info("watching %s objects again", kind.value)
