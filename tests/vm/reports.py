"""Read the reports of the virtual machine's tests, one per line: pure."""

from __future__ import annotations

import json
from typing import Any

Report = dict[str, Any]
"""A `pytest.TestReport` as pytest serialises it."""


class Reports:
    """The reports read so far, by test."""

    def __init__(self) -> None:
        self._rest = ""
        self._found: dict[str, list[Report]] = {}

    def feed(self, text: str) -> None:
        """Add newly written text; its last line may be incomplete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            report: Report = json.loads(line)
            self._found.setdefault(report["nodeid"], []).append(report)

    def of(self, test: str) -> list[Report]:
        """Return the reports of a finished test, empty until it has finished."""
        reports = self._found.get(test, [])
        return reports if any(report["when"] == "teardown" for report in reports) else []

    def has_started(self, test: str) -> bool:
        """Return whether a test has any report."""
        return test in self._found


def failed(test: str, why: str) -> Report:
    """Return the report of a test that did not finish."""
    path, _, name = test.partition("::")
    return _report(test, (path, 0, name), outcome="failed", when="call", longrepr=why)


def skipped(test: str, place: tuple[str, int | None, str], why: str) -> Report:
    """Return the report of a test that cannot run; `place` is its file, line and name."""
    reason = [place[0], (place[1] or 0) + 1, f"Skipped: {why}"]
    return _report(test, place, outcome="skipped", when="setup", longrepr=reason)


def _report(
    test: str, place: tuple[str, int | None, str], *, outcome: str, when: str, longrepr: object
) -> Report:
    return {
        "$report_type": "TestReport",
        "nodeid": test,
        "location": list(place),
        "keywords": {},
        "outcome": outcome,
        "longrepr": longrepr,
        "when": when,
        "user_properties": [],
        "sections": [],
        "duration": 0.0,
        "start": 0.0,
        "stop": 0.0,
    }
