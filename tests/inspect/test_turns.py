"""Turns: one asker at a time, peers in a circle, and a pause after each turn."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from pyproxy.inspect.turns import STEP, BusyError, Turns
from tests.waiting import until


class Time:
    """A clock that only sleeping and working move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_after_a_turn_no_query_computes_for_half_of_its_length() -> None:
    time = Time()
    turn = Turns(time.clock, time.sleep).turn("")
    with turn:
        time.now += STEP / 2
        assert not turn.is_over
        time.now += STEP
        assert turn.is_over
        with turn.paused():
            assert not turn.is_over
        assert time.slept == pytest.approx([0.75 * STEP])
        assert not turn.is_over


def test_peers_have_turns_in_a_circle_and_one_alone_computes() -> None:
    turns, order = Turns(sleep=lambda _: None), list[str]()
    computing = [0]
    waiting: list[threading.Thread] = []

    def ask(peer: str) -> None:
        with turns.turn(peer):
            computing[0] += 1
            assert computing[0] == 1
            order.append(peer)
            computing[0] -= 1

    def waits(number: int) -> bool:
        return turns.waiting == number

    with turns.turn("first"):
        for number, peer in enumerate(["greedy"] * 4 + ["modest", "other"], 1):
            thread = threading.Thread(target=ask, args=(peer,))
            thread.start()
            waiting.append(thread)
            until(partial(waits, number), "the asker waits")
        assert order == []
    for thread in waiting:
        thread.join()
    assert order == ["greedy", "modest", "other", "greedy", "greedy", "greedy"]


def test_an_asker_gives_up_and_leaves_the_turns_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyproxy.inspect.turns.PATIENCE", 0.01)
    turns = Turns()
    with turns.turn("one"):
        with pytest.raises(BusyError, match="kept the agent busy"), turns.turn("other"):
            pass
        assert turns.waiting == 0
    with turns.turn("other"):
        pass
