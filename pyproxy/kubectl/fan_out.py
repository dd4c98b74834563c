"""Ask all agents side by side, in threads, with progress on a terminal."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO, TypeVar

from pyproxy.inspect.humanize import count
from pyproxy.kubectl.agents import Agent
from pyproxy.kubectl.ask import SMALL, Answer, Question, ask
from pyproxy.kubectl.options import Options
from pyproxy.kubectl.patience import SLOW_AFTER, Patience
from pyproxy.source.client import Client

T = TypeVar("T")
Item = TypeVar("Item")

_SHOW_EVERY = 0.1
"""Seconds between two updates of the progress."""

_SLOW_FACTOR = 4
"""Threads for each node that may be asked at the same time; the others wait for slow nodes."""

_CHECK_EVERY = 1.0
"""Seconds after which a thread with a result looks whether anyone still takes it."""


def ask_all(
    client: Client, agents: Sequence[Agent], question: Question, options: Options
) -> Iterator[Answer]:
    """Yield the answer of each agent as it arrives, with progress on stderr.

    Raises UsageError if the user may not run commands in pods.
    """
    progress = Progress(len(agents), sys.stderr)
    # Nodes that are not ready may use up their timeout, so they do not keep others waiting.
    ordered = sorted(agents, key=lambda agent: not agent.node_ready)
    # Slow nodes with large answers do count, because their parts are held.
    most = options.parallel * (1 if question.limit > SMALL else _SLOW_FACTOR)
    patience = Patience(options.timeout, adapts=options.adapts)
    slots = Slots(options.parallel, most, patience.slot)

    def ask_one(agent: Agent) -> Answer:
        deadline = patience.deadline()
        answer = ask(client, agent, question, deadline)
        if agent.container is not None and not answer.failure:
            patience.note_answer(deadline.taken())
        return answer

    try:
        for answer in in_threads(ask_one, ordered, slots):
            progress.add()
            yield answer
    finally:
        progress.clear()


class Slots:
    """Bounds the calls at one time: `limit` of them, and `most` with those that are slow.

    A call counts for `patience()` seconds, so that nodes that hang do not keep others waiting.
    """

    def __init__(
        self,
        limit: int,
        most: int,
        patience: Callable[[], float] = lambda: SLOW_AFTER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = most
        self._limit = limit
        self._patience = patience
        self._clock = clock
        self._changed = threading.Condition()
        self._started: dict[int, float] = {}

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a slot of the calling thread, and hold it."""
        thread = threading.get_ident()
        with self._changed:
            while (wait := self._wait()) > 0:
                self._changed.wait(wait)
            self._started[thread] = self._clock()
        try:
            yield
        finally:
            with self._changed:
                del self._started[thread]
                self._changed.notify()

    def _wait(self) -> float:
        """Return the seconds after which a call becomes slow and leaves its slot, 0 for now."""
        now = self._clock()
        patience = self._patience()
        left = [patience - (now - started) for started in self._started.values()]
        counted = [each for each in left if each > 0]
        return min(counted) if len(counted) >= self._limit else 0.0


def in_threads(function: Callable[[Item], T], items: Sequence[Item], slots: Slots) -> Iterator[T]:
    """Yield the results of a function for all items from several threads, as they arrive.

    The first exception is raised here, and items that wait for a slot are then left out.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    # Bounded, so that large answers wait in their threads and not in memory.
    results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(1)
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                with slots.taken():
                    result = function(item)
                put((result, None))
            except BaseException as error:  # raised again by the caller
                put((None, error))

    def put(result: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                results.put(result, timeout=_CHECK_EVERY)
                return

    # Daemons, because Ctrl-C must not wait for nodes that hang.
    for number in range(min(slots.most, len(items))):
        threading.Thread(target=work, name=f"ask-{number}", daemon=True).start()
    try:
        for _ in items:
            result, error = results.get()
            if error is not None:
                raise error
            yield result  # type: ignore[misc]
    finally:
        stopped.set()


class Progress:
    """The number of nodes that were asked, on one line of a terminal; nothing elsewhere."""

    def __init__(
        self, total: int, file: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._file = file
        self._clock = clock
        self._shows = file.isatty() and total > 1
        self._done = 0
        self._shown_at: float | None = None

    def add(self) -> None:
        """Count one more node."""
        self._done += 1
        now = self._clock()
        due = self._shown_at is None or now - self._shown_at >= _SHOW_EVERY
        if self._shows and (due or self._done == self._total):
            self._shown_at = now
            total = count(self._total, "node")
            self._file.write(f"\r\x1b[Kasked {self._done:,} of {total}")
            self._file.flush()

    def clear(self) -> None:
        """Remove the line."""
        if self._shows and self._shown_at is not None:
            self._file.write("\r\x1b[K")
            self._file.flush()
            self._shown_at = None
