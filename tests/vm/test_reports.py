"""Reports that come over in pieces, and those that stand for what did not come."""

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
def test_it_is_the_same_in_however_many_pieces_it_comes(cuts: list[int]) -> None:
    reports = Reports()
    places = [0, *sorted(cuts), len(WHOLE)]
    for start, end in itertools.pairwise(places):
        reports.feed(WHOLE[start:end])
    for test in ("a", "b"):
        assert [report["when"] for report in reports.of(test)] == ["setup", "call", "teardown"]


def test_a_test_has_ended_once_it_is_torn_down() -> None:
    reports = Reports()
    assert (reports.of("a"), reports.begun("a")) == ([], False)
    reports.feed(line("a", "setup") + line("a", "call"))
    assert (reports.of("a"), reports.begun("a")) == ([], True)
    reports.feed(line("a", "teardown"))
    assert len(reports.of("a")) == 3


@pytest.mark.parametrize(
    ("data", "word", "said"),
    [
        (failed(TEST, "it fell silent"), "failed", "it fell silent"),
        (
            skipped(TEST, ("tests/test_a.py", 4, "test_b[c]"), "no kernel"),
            "skipped",
            "('tests/test_a.py', 5, 'Skipped: no kernel')",
        ),
    ],
)
def test_pytest_takes_what_we_write_for_its_own(
    pytestconfig: pytest.Config, data: dict[str, object], word: str, said: str
) -> None:
    report = pytestconfig.hook.pytest_report_from_serializable(
        config=pytestconfig, data=json.loads(json.dumps(data))
    )
    assert (report.nodeid, report.outcome) == (TEST, word)
    longrepr = report.longrepr
    assert str(tuple(longrepr) if isinstance(longrepr, list) else longrepr) == said
