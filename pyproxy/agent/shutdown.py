"""SIGTERM and SIGINT, which may arrive at any moment of a serving process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class ShutdownSignal:
    """Handles the signals from the first `on_shutdown` to its exit, also between two runs."""

    def __init__(self) -> None:
        self.received = False
        self._callback: Callable[[], None] = lambda: None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_shutdown(self, callback: Callable[[], None]) -> None:
        """Set the callback of the signals; call it at once if one has arrived already.

        Main thread only. A signal interrupts that thread anywhere, so `callback` must take no lock.
        """
        self._callback = callback
        if not self._previous:
            self._previous = {number: signal.signal(number, self._handle) for number in _NUMBERS}
        if self.received:
            callback()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        # Recorded too, because between two runs the callback is the one of the run that has ended.
        self.received = True
        self._callback()
