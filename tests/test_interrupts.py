"""Signals that end a command as Ctrl-C does."""

from __future__ import annotations

import signal
import threading

import pytest

from pyproxy.interrupts import interrupted_by

NUMBERS = (signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_signal_interrupts_the_block_and_has_its_handler_again(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in NUMBERS}
    with pytest.raises(KeyboardInterrupt), interrupted_by(*NUMBERS):
        signal.raise_signal(number)
    assert {each: signal.getsignal(each) for each in NUMBERS} == before


def test_it_leaves_the_handlers_alone_in_other_threads() -> None:
    entered = []

    def enter() -> None:
        with interrupted_by(*NUMBERS):
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGTERM)]
