import subprocess
import sys
from pathlib import Path

import pytest

from bench.counts import Baseline, grown_counts

ROOT = Path(__file__).parents[2]


@pytest.mark.kernel
def test_no_count_is_above_the_baseline() -> None:
    # In a process that has done nothing else, because its allocations are counted.
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "no count has grown\n"), done.stderr


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("rows", 10, []),
        ("rows", 9, []),
        ("rows", 11, ["rows: 11, and it was 10"]),
        ("others", 1, ["others: 1, and the baseline has none"]),
        ("blocks kept", 1_020, []),
        ("blocks kept", 1_021, []),
    ],
)
def test_a_count_that_has_grown_is_told(name: str, value: int, found: list[str]) -> None:
    # Blocks are another Python's here, and say nothing.
    baseline = Baseline("2.7", {"rows": 10, "blocks kept": 1_000}, {})
    assert grown_counts(baseline, {name: value}) == found
