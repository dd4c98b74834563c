"""Which changes a stall of the machine has disturbed."""

import pytest

from bench.tail import undisturbed

WRITTEN = {"a": 1.0, "b": 2.0, "c": 3.0}
SEEN = {"a": 1.5, "b": 2.5, "c": 3.5}


@pytest.mark.parametrize(
    ("stalls", "left"),
    [
        ([], "abc"),
        ([(0.0, 0.9)], "abc"),
        ([(0.0, 1.2)], "bc"),
        ([(1.2, 1.3)], "bc"),
        ([(1.4, 2.1)], "c"),
        ([(1.6, 1.9)], "abc"),
        # A long stall of one processor, and a short one of another that began later.
        ([(0.0, 2.2), (0.5, 0.6)], "c"),
        ([(0.0, 9.0)], ""),
    ],
)
def test_changes_in_a_stall_are_left_out(stalls: list[tuple[float, float]], left: str) -> None:
    # A pod that was replaced before the kernel had it is in no list.
    written = {**WRITTEN, "unseen": 1.0}
    assert len(undisturbed(written, SEEN, stalls)) == len(left)
