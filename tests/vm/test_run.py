"""Tests whose machine ends in time, early or never; `sh` stands for the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import run
from tests.vm.machine import VirtualMachine
from tests.vm.run import GuestRun

Start = Callable[[str], GuestRun]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def prepare(script: str) -> GuestRun:
        return GuestRun(
            VirtualMachine(["sh", "-c", script], tmp_path / "console"), tmp_path / "reports"
        )

    return prepare


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """Return a function that writes a shell command which appends one report."""

    def write(test: str, when: str) -> str:
        return f"echo '{json.dumps({'nodeid': test, 'when': when})}' >>{tmp_path}/reports"

    return write


def test_a_test_waits_for_its_reports_while_the_machine_runs(
    start: Start, write: Callable[[str, str], str]
) -> None:
    script = [write("a", "setup"), "sleep 0.3", write("a", "call"), write("a", "teardown")]
    with start("; ".join([*script, "sleep 600"])) as going:
        assert [report["when"] for report in going.outcome("a")] == ["setup", "call", "teardown"]


def test_tests_cut_off_by_a_panic_fail_with_the_console(
    start: Start, write: Callable[[str, str], str]
) -> None:
    script = [write("a", "setup"), write("a", "teardown"), write("b", "setup"), "echo Oops: 0002"]
    with start("; ".join(script)) as going:
        assert len(going.outcome("a")) == 2
        (cut,) = going.outcome("b")
        (never,) = going.outcome("c")
    assert (cut["outcome"], never["outcome"]) == ("failed", "failed")
    assert "the machine has ended during this test" in cut["longrepr"]
    assert "the machine has ended before this test" in never["longrepr"]
    assert "Oops: 0002" in cut["longrepr"]
    assert "Oops: 0002" in never["longrepr"]


def test_a_machine_without_output_is_ended(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE", 0.5)
    with start("sleep 600") as going:
        (first,) = going.outcome("a")
        assert "wrote nothing" in first["longrepr"]
        (second,) = going.outcome("b")
        assert second["outcome"] == "failed"
