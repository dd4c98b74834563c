"""What the tests of the virtual machine have written, one report a line: pure."""

from __future__ import annotations

import json
from typing import Any

Report = dict[str, Any]
"""A `pytest.TestReport` in pytest's own form for sending it elsewhere."""


class Reports:
    """Reports by the test that they are of, as far as they have been read."""

    def __init__(self) -> None:
        self._rest = ""
        self._found: dict[str, list[Report]] = {}

    def feed(self, text: str) -> None:
        """Take in what was written since the last time; the last line may be there in part."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            report: Report = json.loads(line)
            self._found.setdefault(report["nodeid"], []).append(report)

    def of(self, test: str) -> list[Report]:
        """Give a test's reports once it has ended; none before."""
        reports = self._found.get(test, [])
        return reports if any(report["when"] == "teardown" for report in reports) else []

    def begun(self, test: str) -> bool:
        """Tell whether a test has reported anything yet."""
        return test in self._found


def failed(test: str, why: str) -> Report:
    """Write the report of a test that did not come back."""
    path, _, name = test.partition("::")
    return _report(test, (path, 0, name), outcome="failed", when="call", longrepr=why)


def skipped(test: str, place: tuple[str, int | None, str], why: str) -> Report:
    """Write the report of a test that cannot be run; `place` is its file, line and name."""
    said = [place[0], (place[1] or 0) + 1, f"Skipped: {why}"]
    return _report(test, place, outcome="skipped", when="setup", longrepr=said)


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
