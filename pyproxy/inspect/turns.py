"""Turns of the threads that compute answers: one at a time, in steps, with pauses.

Python runs one thread at a time. A thread that computes gives way after the switch interval, which
`agent.loop` sets, so with n such threads each blocking call of the agent's thread costs up to n
intervals.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyproxy.errors import PyproxyError

STEP = 0.01
"""Seconds after which a turn ends between two parts of an answer."""

PATIENCE = 10.0
"""Seconds until an asker gives up its wait: that of a turn, or that of a snapshot."""

_PAUSE = 0.5
"""Seconds without any turn for each second of one."""

_LONGEST_PAUSE = 0.05


class BusyError(PyproxyError):
    """The agent's thread, or the askers before, left no time for a query."""


class Turns:
    """A lock with turns: one asker computes at a time, and none right after each turn.

    Peers take turns in a circle, and the askers of one peer in their order, so that one peer with
    many questions delays another by one turn at most. `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: OrderedDict[str, deque[threading.Lock]] = OrderedDict()
        self._free_at = float("-inf")

    @property
    def waiting(self) -> int:
        """The number of askers that wait."""
        return sum(map(len, self._waiting.values()))

    def turn(self, peer: str) -> Turn:
        """Return the turns of one asker, none of which has begun."""
        return Turn(self, peer)

    def begin(self, peer: str) -> float:
        """Wait for a turn, and return its start. Raises BusyError."""
        with self._lock:
            mine = self._queue(peer)
        if mine is not None and not mine.acquire(timeout=PATIENCE):
            with self._lock:
                given_up = self._leave(peer, mine)
            if given_up:
                raise BusyError(
                    f"other queries kept the agent busy for {PATIENCE:.0f} s: try again"
                )
        if (pause := self._free_at - self._clock()) > 0:
            self._sleep(pause)
        return self._clock()

    def end(self, began: float) -> None:
        """End a turn, and let the next asker begin."""
        now = self._clock()
        self._free_at = now + min(_PAUSE * (now - began), _LONGEST_PAUSE)
        with self._lock:
            if not self._waiting:
                self._taken = False
                return
            peer, askers = self._waiting.popitem(last=False)
            askers.popleft().release()
            if askers:
                self._waiting[peer] = askers

    def elapsed(self, began: float) -> float:
        """Return the seconds since the start of a turn."""
        return self._clock() - began

    def _queue(self, peer: str) -> threading.Lock | None:
        """Take the turn, or return a lock that is released once the turn is the caller's."""
        if not self._taken:
            self._taken = True
            return None
        mine = threading.Lock()
        mine.acquire()
        self._waiting.setdefault(peer, deque()).append(mine)
        return mine

    def _leave(self, peer: str, mine: threading.Lock) -> bool:
        """Leave the queue; return false if the turn is the caller's meanwhile."""
        askers = self._waiting.get(peer, deque())
        if mine not in askers:
            return False
        askers.remove(mine)
        if not askers:
            del self._waiting[peer]
        return True


class Turn:
    """The turns of one asker: inside of it, the asker alone computes.

    One thread uses it. Entering raises BusyError, and so does the end of `paused`.
    """

    def __init__(self, turns: Turns, peer: str) -> None:
        self._turns = turns
        self._peer = peer
        self._began: float | None = None

    def __enter__(self) -> Turn:
        self._began = self._turns.begin(self._peer)
        return self

    def __exit__(self, *_: object) -> None:
        # None if `paused` raised BusyError: then there is no turn to end.
        if self._began is not None:
            self._turns.end(self._began)
            self._began = None

    @property
    def is_over(self) -> bool:
        """Whether the turn has lasted so long that others should have one."""
        return self._began is not None and self._turns.elapsed(self._began) >= STEP

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let others have turns inside of it, where the caller blocks, and then wait for one."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()
