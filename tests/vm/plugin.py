"""Runs the tests that are marked `vm` in the virtual machine, and reports them as its own.

The machine is booted once, at the first of them, with all that were chosen, and each waits for its
report. Where workers share the tests, one of them has all of these (`tests/sharing.py`), and they
come first, so that the machine works beside the other tests.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.vm.machine import Machine, boot_command, what_is_missing
from tests.vm.reports import Report, failed, skipped
from tests.vm.run import Run

MARKER = "vm"
HERE = "--on-this-kernel"
ALL = "--all-in-vm"

_PLUGINS = ("--disable-plugin-autoload", "-p", "no:cacheprovider")
_PASSED_ON = ("PYPROXY_REQUIRE_KERNEL", "PYPROXY_TEST_MODES")


def options(parser: pytest.Parser) -> None:
    parser.addoption(
        HERE, action="store_true", help="run the tests marked vm on this machine's own kernel"
    )
    parser.addoption(
        ALL, action="store_true", help="run all cases in the virtual machine, in nftables mode too"
    )


def elsewhere(item: pytest.Item) -> bool:
    """Tell whether a test is one for the virtual machine."""
    return item.get_closest_marker(MARKER) is not None and not item.config.getoption(HERE)


def check_names(items: Sequence[pytest.Item]) -> None:
    """Have the modules of the machine's tests called so that they stay with one worker."""
    for item in items:
        if elsewhere(item) and not item.path.name.endswith(f"_{MARKER}.py"):
            raise pytest.UsageError(
                f"{item.path.name} has tests marked {MARKER}: "
                f"a name that ends in _{MARKER}.py keeps them together"
            )


class Suite:
    """The tests of the machine in one session of pytest, as a plugin of it."""

    def __init__(self) -> None:
        self._missing = what_is_missing()
        self._run: Run | None = None
        self._stack = ExitStack()

    def pytest_unconfigure(self) -> None:
        self._stack.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report a test of the machine; None leaves a test to those who run it here."""
        if not elsewhere(item):
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in self._outcome(item):
            report = hook.pytest_report_from_serializable(config=item.config, data=data)
            if isinstance(report.longrepr, list):  # a skip's place and reason, as JSON has it
                report.longrepr = tuple(report.longrepr)
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _boot(self, session: pytest.Session) -> Run:
        modes = session.config.getoption("--modes")
        tests = [item.nodeid for item in session.items if elsewhere(item)]
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pyproxy-vm-")))
        (folder / "tests").write_text("\n".join(tests))
        passed_on = [f"{name}={os.environ[name]}" for name in _PASSED_ON if name in os.environ]
        runner = [".venv/bin/python", "-m", "pytest", *_PLUGINS, "-p", "tests.vm.recorder"]
        all_or_not = [ALL] if session.config.getoption(ALL) else []
        chosen = [HERE, *all_or_not, f"--modes={modes}", "@/run/results/tests"]
        command = ["env", *passed_on, *runner, *chosen]
        machine = Machine(boot_command(folder, shlex.join(command)), folder / "console")
        return self._stack.enter_context(Run(machine, folder / "reports"))

    def _outcome(self, item: pytest.Item) -> Sequence[Report]:
        if not self._missing:
            self._run = self._run or self._boot(item.session)
            return self._run.outcome(item.nodeid)
        if os.environ.get("PYPROXY_REQUIRE_KERNEL") == "1":
            return [failed(item.nodeid, f"skipped where PYPROXY_REQUIRE_KERNEL=1: {self._missing}")]
        return [skipped(item.nodeid, item.location, self._missing)]
