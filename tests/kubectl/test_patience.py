"""The wait for a node that hangs: less than the limit once others have answered faster."""

from __future__ import annotations

import pytest

from pyproxy.kubectl.patience import ENOUGH, FACTOR, LAST, LEAST, Patience
from pyproxy.source.websocket import DeadlineError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def answered(seconds: float, count: int = ENOUGH, *, adapts: bool = True) -> tuple[Patience, Clock]:
    clock = Clock()
    patience = Patience(10.0, adapts=adapts, clock=clock)
    for _ in range(count):
        patience.note_answer(seconds)
    return patience, clock


@pytest.mark.parametrize(
    ("seconds", "count", "adapts", "allowed"),
    [
        (0.1, ENOUGH, True, LEAST),
        (1.0, ENOUGH, True, FACTOR * 1.0),
        (5.0, ENOUGH, True, 10.0),
        (0.1, ENOUGH - 1, True, 10.0),
        (0.1, ENOUGH, False, 10.0),
    ],
)
def test_a_node_may_take_longer_than_others_but_not_much(
    seconds: float, count: int, adapts: bool, allowed: float
) -> None:
    patience, clock = answered(seconds, count, adapts=adapts)
    deadline = patience.deadline()
    assert deadline.left() == allowed
    clock.now += allowed - 0.5
    assert deadline.left() == 0.5
    clock.now += 0.5
    with pytest.raises(DeadlineError, match=f"no response within {allowed:g} s"):
        deadline.wait()


def test_answers_shorten_the_wait_for_nodes_that_were_asked_before() -> None:
    patience, clock = answered(0.1, 0)
    deadline = patience.deadline()
    clock.now += 4.0
    assert deadline.left() == 6.0
    for _ in range(ENOUGH):
        patience.note_answer(0.5)
    with pytest.raises(DeadlineError, match="no response within 3 s"):
        deadline.left()


def test_a_slow_node_lengthens_the_wait_for_others() -> None:
    patience, _ = answered(0.1)
    patience.note_answer(1.6)
    assert patience.deadline().left() == FACTOR * 1.6


def test_no_node_is_waited_for_long_after_none_has_answered() -> None:
    patience, clock = answered(0.1, 0)
    clock.now += 9.9
    assert patience.deadline().left() == 10.0
    clock.now += 0.1
    assert patience.deadline().left() == LAST
    patience.note_answer(0.1)
    assert patience.deadline().left() == 10.0


@pytest.mark.parametrize(("seconds", "slow"), [(0.1, 1.0), (0.5, 1.0), (2.0, 4.0)])
def test_a_node_is_slow_compared_with_others(seconds: float, slow: float) -> None:
    patience, _ = answered(seconds, 1)
    assert patience.slot() == slow
    assert answered(seconds, 0)[0].slot() == 1.0
