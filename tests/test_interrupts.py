"""Signals that end a command as Ctrl-C does."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from pyproxy import cli
from pyproxy.interrupts import interrupted_by
from pyproxy.kubectl import main as plugin
from tests.waiting import PATIENCE, until

NUMBERS = (signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_a_signal_interrupts_the_block_and_has_its_handler_again(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in NUMBERS}
    with pytest.raises(KeyboardInterrupt), interrupted_by(*NUMBERS):
        signal.raise_signal(number)
    assert {each: signal.getsignal(each) for each in NUMBERS} == before


@pytest.mark.parametrize("number", [signal.SIGINT, *NUMBERS], ids=lambda number: number.name)
def test_a_wait_that_the_signal_does_not_interrupt_ends(number: signal.Signals) -> None:
    main = threading.main_thread().native_id
    read_end, write_end = os.pipe()
    ended, too_late = threading.Event(), threading.Event()

    def waits() -> bool:
        return Path(f"/proc/self/task/{main}/syscall").read_text().split()[1:2] == [hex(read_end)]

    def send() -> None:
        until(waits, "the main thread waits")
        # This thread takes it, so that no wait of the main thread ends.
        signal.pthread_kill(threading.get_ident(), number)
        if not ended.wait(PATIENCE):
            too_late.set()
            os.write(write_end, b"end")

    # A shell that starts this process in the background has it ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt), interrupted_by(*NUMBERS):
            os.read(read_end, 10)
    finally:
        ended.set()
        thread.join()
        os.close(write_end)
        os.close(read_end)
        signal.signal(signal.SIGINT, before)
    assert not too_late.is_set()


@pytest.mark.parametrize(
    ("main", "module"), [(cli.main, "commands.watch"), (plugin.main, "kubectl.top")]
)
def test_each_command_is_interrupted_at_once(
    main: Callable[[Sequence[str]], int], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def run(*_: object) -> int:
        threads.extend(each.name for each in threading.enumerate())
        raise KeyboardInterrupt

    command = importlib.import_module(f"pyproxy.{module}")
    monkeypatch.setattr(command, "COMMAND", msgspec.structs.replace(command.COMMAND, run=run))
    assert main([module.rpartition(".")[2]]) == 130
    assert "interrupts" in threads


def test_all_that_it_took_is_given_back() -> None:
    threads = set(threading.enumerate())
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    handler = signal.getsignal(signal.SIGURG)
    for _ in range(3):
        with interrupted_by(*NUMBERS), interrupted_by():
            pass
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert signal.getsignal(signal.SIGURG) is handler
    assert signal.set_wakeup_fd(-1) == -1


def test_it_leaves_the_handlers_alone_in_other_threads() -> None:
    entered = []

    def enter() -> None:
        with interrupted_by(*NUMBERS):
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGTERM)]
