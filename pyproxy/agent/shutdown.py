"""SIGTERM and SIGINT, which may arrive at any moment of a serving process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from pyproxy.workers import Worker

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_MOST_NUMBERS = 64
_END_SECONDS = 1.0


class ShutdownSignal:
    """Handles the signals from the first `on_shutdown` to its exit, also between two runs.

    Python runs a signal handler in the main thread alone, between two bytecodes. A signal that
    arrives after the last bytecode before a wait interrupts nothing, so its handler would run when
    the wait is over. A thread reads the numbers that Python's own C code writes to a pipe.
    """

    def __init__(self) -> None:
        self.received = False
        self._callback: Callable[[], None] = lambda: None
        self._previous: dict[int, Any] = {}
        self._previous_wakeup = -1
        self._read_end, self._write_end = os.pipe()
        self._thread = Worker("signals", self._watch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._write_end)
        # It returns at the end of the pipe, after the callbacks of all signals before.
        self._thread.end(_END_SECONDS)
        os.close(self._read_end)

    def on_shutdown(self, callback: Callable[[], None]) -> None:
        """Set the callback of the signals; call it at once if one has arrived already.

        Main thread only. `callback` is called in another thread, maybe more than once, and must not
        block.
        """
        self._callback = callback
        if not self._previous:
            os.set_blocking(self._write_end, False)
            self._previous_wakeup = signal.set_wakeup_fd(self._write_end)
            self._previous = {number: signal.signal(number, self._handle) for number in _NUMBERS}
            self._thread.start()
        if self.received:
            callback()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # Here too, because between two runs the main thread asks for it at once.
        self.received = True

    def _watch(self) -> None:
        while numbers := os.read(self._read_end, _MOST_NUMBERS):
            if not set(numbers).isdisjoint(_NUMBERS):
                self.received = True
                self._callback()
