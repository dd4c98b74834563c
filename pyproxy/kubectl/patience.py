"""How long to wait for a node: less than the limit if other nodes respond much faster.

Nodes that hang would otherwise add the whole limit to the time of each command.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pyproxy.source.websocket import Deadline, DeadlineError

ENOUGH = 10
"""Answers from which the duration of others is estimated."""

FACTOR = 5
"""How often the longest duration of an answer a node may take."""

LEAST = 3.0
"""Seconds that every node may take, while any responds."""

LAST = 1.0
"""Seconds that each of the other nodes may take after none has responded for the whole limit."""

SLOW_AFTER = 1.0
"""Seconds after which a node does not count as one that is asked, if answers take less."""

_SLOW_FACTOR = 2
_SLICE = 0.2


class Patience:
    """The seconds that each node may take, from those that the answers so far took. Thread-safe.

    `limit` is the longest wait. Without `adapts` it is that of every node.
    """

    def __init__(
        self, limit: float, *, adapts: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._adapts = adapts
        self._clock = clock
        self._lock = threading.Lock()
        self._answers = 0
        self._longest = self._sum = 0.0
        self._last_answer = clock()

    def note_answer(self, seconds: float) -> None:
        """Note that a node has answered, after a number of seconds."""
        with self._lock:
            self._answers += 1
            self._longest = max(self._longest, seconds)
            self._sum += seconds
            self._last_answer = self._clock()

    def seconds(self, began: float) -> float:
        """Return how long a node may take that was asked at a time of the clock."""
        with self._lock:
            if not self._adapts:
                return self._limit
            if began - self._last_answer >= self._limit:
                return min(LAST, self._limit)
            if self._answers < ENOUGH:
                return self._limit
            # Whole seconds, so that nodes with the same problem have the same message.
            return min(self._limit, max(LEAST, float(round(FACTOR * self._longest))))

    def slot(self) -> float:
        """Return the seconds after which a node is slow, so that another one is asked beside it.

        On a busy machine all answers are late, and more nodes at a time would make them later.
        """
        with self._lock:
            average = self._sum / self._answers if self._answers else 0.0
            return max(SLOW_AFTER, _SLOW_FACTOR * average)

    def deadline(self) -> NodeDeadline:
        """Return the deadline of a node that is asked now."""
        return NodeDeadline(self, self._clock)


class NodeDeadline(Deadline):
    """The deadline of one node, which comes earlier when others answer meanwhile."""

    def __init__(self, patience: Patience, clock: Callable[[], float]) -> None:
        super().__init__(None)
        self._patience = patience
        self._now = clock
        self._began = clock()

    def left(self) -> float:
        """Return the seconds that are left. Raises DeadlineError at the end."""
        allowed = self._patience.seconds(self._began)
        left = allowed - self.taken()
        if left <= 0:
            raise DeadlineError(f"no response within {allowed:g} s")
        return left

    def wait(self) -> float:
        """Return the seconds after which to look again. Raises DeadlineError at the end."""
        return min(self.left(), _SLICE)

    def taken(self) -> float:
        """Return the seconds since the node was asked."""
        return self._now() - self._began
