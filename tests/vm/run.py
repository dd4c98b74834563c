"""Follow the virtual machine through its tests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm.machine import VirtualMachine
from tests.vm.reports import Report, Reports, failed

PATIENCE = 600.0
"""Seconds without output on the console or a report after which the machine is ended."""

_PAUSE = 0.2


class GuestRun:
    """A context manager in which the machine runs and appends reports to `file`."""

    def __init__(self, machine: VirtualMachine, file: Path) -> None:
        self._machine = machine
        self._file = file.open("w+")
        self._reports = Reports()
        self._last_output = time.monotonic()
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
        """Block until a test's reports are there, or return one with the reason for its absence."""
        while True:
            running = self._machine.running
            self._read()
            if reports := self._reports.of(test):
                return reports
            if not running:
                return [failed(test, self._why(test))]
            if time.monotonic() - self._last_output > PATIENCE:
                self._end = f"wrote nothing for {PATIENCE:.0f} s and was ended"
                self._machine.end()
            time.sleep(_PAUSE)

    def _read(self) -> None:
        """Read new reports, and note the time of any output."""
        text = self._file.read()
        self._reports.feed(text)
        silence = 0.0 if text else time.time() - self._machine.console.stat().st_mtime
        self._last_output = max(self._last_output, time.monotonic() - silence)

    def _why(self, test: str) -> str:
        when = "during this test" if self._reports.has_started(test) else "before this test"
        return f"the machine {self._end} {when}\n\nEnd of its console:\n{self._machine.tail()}"
