"""Signals that end the agent, at moments at which Python cannot interrupt the main thread."""

from __future__ import annotations

import gc
import os
import queue
import signal
from collections.abc import Iterator

import pytest

from pyproxy.agent.shutdown import ShutdownSignal
from tests.waiting import PATIENCE, until


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Let no blocked signal and no handler outlive a test."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert handlers == {number: signal.getsignal(number) for number in handlers}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_wait_that_the_signal_does_not_interrupt_ends(number: signal.Signals) -> None:
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    with ShutdownSignal() as shutdown:
        shutdown.on_shutdown(lambda: inbox.put("stop"))
        # Another thread takes it, as if the main thread had begun to wait when it arrived.
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        os.kill(os.getpid(), number)
        assert inbox.get(timeout=PATIENCE) == "stop"
        assert shutdown.received


def test_the_callback_of_the_present_run_is_called() -> None:
    called: list[str] = []
    with ShutdownSignal() as shutdown:
        shutdown.on_shutdown(lambda: called.append("first"))
        shutdown.on_shutdown(lambda: called.append("second"))
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: called)
        assert called == ["second"]
        # Those of a run that begins after the signal too.
        shutdown.on_shutdown(lambda: called.append("third"))
    assert called == ["second", "third"]


def test_another_signal_calls_nothing() -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: called.append(1))
    try:
        with ShutdownSignal() as shutdown:
            shutdown.on_shutdown(lambda: called.append(2))
            os.kill(os.getpid(), signal.SIGUSR1)
        assert called == [1]
        assert not shutdown.received
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_all_that_it_took_is_given_back() -> None:
    gc.collect()  # no other test's descriptors end meanwhile
    descriptors = len(os.listdir("/proc/self/fd"))
    with ShutdownSignal():
        pass
    with ShutdownSignal() as shutdown:
        shutdown.on_shutdown(lambda: None)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert signal.set_wakeup_fd(-1) == -1
