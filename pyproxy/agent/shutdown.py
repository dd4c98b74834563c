"""SIGTERM and SIGINT, which may come at any moment of a process that serves."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class ShutdownSignal:
    """Hears the signals from the first `tell` on until it is left, between two runs as well."""

    def __init__(self) -> None:
        self.is_asked_for = False
        self._tell: Callable[[], None] = lambda: None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def tell(self, tell: Callable[[], None]) -> None:
        """Have `tell` called by the signal, or at once where that has come already.

        For the main thread alone. It interrupts whatever that does, so it must take no lock.
        """
        self._tell = tell
        if not self._before:
            self._before = {number: signal.signal(number, self._heard) for number in _NUMBERS}
        if self.is_asked_for:
            tell()

    def _heard(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.is_asked_for = True
        self._tell()
