"""Programs that a lab starts have default signals, whatever its own process ignores."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pyproxy_lab.namespace import with_default_signals

from tests.namespaces import empty_namespace

IGNORABLE = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
WAIT = "print('ready', flush=True); import time; time.sleep(60)"


@pytest.fixture
def ignoring() -> Iterator[None]:
    """Ignore what nohup, and a shell for its background programs, have their children ignore."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in IGNORABLE}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_command_is_run_as_it_is_where_no_signal_is_ignored() -> None:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in IGNORABLE}
    try:
        assert with_default_signals(("sleep", "1")) == ["sleep", "1"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.usefixtures("ignoring")
def test_a_child_of_a_process_that_ignores_interrupts_can_be_interrupted() -> None:
    command = with_default_signals([sys.executable, "-c", WAIT])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors


@pytest.mark.kernel
@pytest.mark.usefixtures("ignoring")
@pytest.mark.parametrize("number", IGNORABLE, ids=lambda number: number.name)
def test_so_can_a_program_in_a_namespace(number: signal.Signals) -> None:
    with empty_namespace("signals") as here:
        command = ["sh", "-c", "echo ready; exec sleep 60"]
        with here.start(command, output=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            child.send_signal(number)
            assert child.wait(timeout=30) == -number
