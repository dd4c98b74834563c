"""Delays between requests to a failing API server."""

from __future__ import annotations

import threading
import time
from random import Random
from typing import Protocol

from pyproxy.backoff import Backoff
from pyproxy.errors import SourceError
from pyproxy.source.client import ApiStatusError

FIRST_DELAY = 0.2
"""Seconds: the ceiling of the first delay after a failure."""

LONGEST_DELAY = 30.0
"""Seconds: the ceiling that delays grow to."""

SHORTEST_WATCH = 1.0
"""Seconds; after a shorter watch, the next one waits for the rest of this time."""

STABLE_WATCH = 30.0
"""Seconds that a watch must last until the next list is the first one again.

Lists are expensive: a server that rejects each version soon after its list gets one list in
LONGEST_DELAY seconds, also if each watch between them has an event.
"""

SHORTEST_SPREAD = 1.0
"""Seconds that new lists are spread over at least."""

LONGEST_SPREAD = 10.0
"""Seconds that new lists are spread over after a long outage."""

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
    """The delays between requests to an API server that fails, as in client-go with full jitter.

    `first` and `longest` are the ceilings of the first delay and of the longest one in seconds.
    """

    def __init__(
        self, random: Random, first: float = FIRST_DELAY, longest: float = LONGEST_DELAY
    ) -> None:
        self._backoff = Backoff(first, longest, random)

    def next(self, error: SourceError) -> float:
        """Return the seconds to wait after this failure, the server's Retry-After included."""
        retry_after = error.retry_after if isinstance(error, ApiStatusError) else 0.0
        return self._backoff.next() + min(retry_after, LONGEST_RETRY_AFTER)

    def reset(self) -> None:
        """Start again with the first delay."""
        self._backoff.reset()


class RequestPacing:
    """The delays between the lists and watches of one kind, which bound the requests.

    Each kind sends at most one watch a second, and after failures without an event in between, one
    request in LONGEST_DELAY seconds. Not thread-safe.
    """

    def __init__(self, random: Random, now: float) -> None:
        self._requests = ApiBackoff(random)
        self._lists = ApiBackoff(random)
        self._random = random
        self._began = now
        self._progressed = False
        self._outage_began: float | None = None

    def begin(self, now: float) -> None:
        """Note that a list or a watch begins, at a time in seconds."""
        self._began, self._progressed = now, False

    def note_event(self) -> None:
        """Note that the present watch had an event."""
        self._progressed = True

    def note_outage(self, now: float) -> None:
        """Note a failure that the other clients of the server may see too."""
        if self._outage_began is None:
            self._outage_began = now

    def note_recovery(self) -> None:
        """Note an event or a complete list: an outage is over."""
        self._outage_began = None

    def before_relist(self, now: float) -> float:
        """Return the seconds to wait before a new list, because the server lost a version.

        A restart of the server takes the versions of all nodes away at once. Nothing could change
        while it was away, so the lists are spread over as long again, up to LONGEST_SPREAD.
        """
        outage = 0.0 if self._outage_began is None else now - self._outage_began
        return self._random.uniform(0, min(LONGEST_SPREAD, max(SHORTEST_SPREAD, outage)))

    def after_watch(self, now: float, failed: bool) -> float:
        """Return the seconds to wait at least after a watch that ends now.

        A server or HTTP proxy that ends each watch at once would cause a loop of requests. After a
        failure without an event, the delay of `after_failure` bounds them.
        """
        lasted = now - self._began
        if lasted >= STABLE_WATCH:
            self._lists.reset()
        if self._progressed or (lasted >= SHORTEST_WATCH and not failed):
            self._requests.reset()
        return 0.0 if failed and not self._progressed else max(0.0, SHORTEST_WATCH - lasted)

    def after_failure(self, error: SourceError, *, lists: bool) -> float:
        """Return the seconds to wait; `lists` if the error is the cause of the next list."""
        delay = self._requests.next(error)
        return max(delay, self._lists.next(error)) if lists else delay
