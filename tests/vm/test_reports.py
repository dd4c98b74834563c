"""Reports in pieces, and reports for tests without one."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vm.reports import Reports, failed, skipped

TEST = "tests/test_a.py::test_b[c]"


def line(test: str, when: str) -> str:
    return json.dumps({"nodeid": test, "when": when}) + "\n"


WHOLE = "".join(line(test, when) for test in ("a", "b") for when in ("setup", "call", "teardown"))


@given(st.lists(st.integers(0, len(WHOLE)), max_size=5))
def test_reports_do_not_depend_on_how_the_text_is_cut(cuts: list[int]) -> None:
    reports = Reports()
    places = [0, *sorted(cuts), len(WHOLE)]
    for start, end in itertools.pairwise(places):
        reports.feed(WHOLE[start:end])
    for test in ("a", "b"):
        assert [report["when"] for report in reports.of(test)] == ["setup", "call", "teardown"]


def test_a_test_is_finished_after_its_teardown() -> None:
    reports = Reports()
    assert (reports.of("a"), reports.has_started("a")) == ([], False)
    reports.feed(line("a", "setup") + line("a", "call"))
    assert (reports.of("a"), reports.has_started("a")) == ([], True)
    reports.feed(line("a", "teardown"))
    assert len(reports.of("a")) == 3


@pytest.mark.parametrize(
    ("data", "word", "text"),
    [
        (failed(TEST, "it wrote nothing"), "failed", "it wrote nothing"),
        (
            skipped(TEST, ("tests/test_a.py", 4, "test_b[c]"), "no kernel"),
            "skipped",
            "('tests/test_a.py', 5, 'Skipped: no kernel')",
        ),
    ],
)
def test_pytest_reads_the_reports_that_we_write(
    pytestconfig: pytest.Config, data: dict[str, object], word: str, text: str
) -> None:
    report = pytestconfig.hook.pytest_report_from_serializable(
        config=pytestconfig, data=json.loads(json.dumps(data))
    )
    assert (report.nodeid, report.outcome) == (TEST, word)
    longrepr = report.longrepr
    assert str(tuple(longrepr) if isinstance(longrepr, list) else longrepr) == text
