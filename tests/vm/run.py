"""A machine that works its way through tests, and what it has reported so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm.machine import Machine
from tests.vm.reports import Report, Reports, failed

PATIENCE = 600.0
"""Seconds without a word from the machine, on its console or in a report, until it is ended."""

_PAUSE = 0.2


class Run:
    """A context manager: inside it the machine runs, and `file` fills with its reports."""

    def __init__(self, machine: Machine, file: Path) -> None:
        self._machine = machine
        self._file = file.open("w+")
        self._reports = Reports()
        self._heard = time.monotonic()
        self._end = "has ended"

    def __enter__(self) -> Self:
        self._machine.boot()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._machine.end()
        self._file.close()

    def outcome(self, test: str) -> Sequence[Report]:
        """Wait for a test's reports, or write one that says why there are none."""
        while True:
            running = self._machine.running
            self._listen()
            if reports := self._reports.of(test):
                return reports
            if not running:
                return [failed(test, self._why(test))]
            if time.monotonic() - self._heard > PATIENCE:
                self._end = f"said nothing for {PATIENCE:.0f} s and was ended"
                self._machine.end()
            time.sleep(_PAUSE)

    def _listen(self) -> None:
        """Read what is new, and remember when there was any."""
        text = self._file.read()
        self._reports.feed(text)
        silent = 0.0 if text else time.time() - self._machine.console.stat().st_mtime
        self._heard = max(self._heard, time.monotonic() - silent)

    def _why(self, test: str) -> str:
        when = "in the middle of this test" if self._reports.begun(test) else "without it"
        return f"the machine {self._end}, {when}\n\nIts last words:\n{self._machine.tail()}"
