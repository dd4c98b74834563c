"""A pytest plugin that runs the tests marked `vm` in the virtual machine and reports them here.

The first such test boots the machine with all selected ones, and each waits for its report. With
several workers, one has all of these tests (`tests/sharing.py`). They come first, so that the
machine runs beside the other tests.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.vm.machine import VirtualMachine, boot_command, kernel_version, missing_requirement
from tests.vm.reports import Report, failed, skipped
from tests.vm.run import GuestRun

MARKER = "vm"
HERE = "--on-this-kernel"
ALL = "--all-in-vm"
CUT = "cut_in_vm"
"""The marker whose argument selects, by a test's parameters, what runs without `ALL`."""
KERNELS = "kernels"
"""The marker whose arguments `since` and `before` are Linux versions, such as (5, 14)."""

_PLUGINS = ("--disable-plugin-autoload", "-p", "no:cacheprovider")
_ENVIRONMENT = ("PYPROXY_REQUIRE_KERNEL", "PYPROXY_TEST_MODES")


def options(parser: pytest.Parser) -> None:
    parser.addoption(
        HERE, action="store_true", help="run the tests marked vm on this machine's own kernel"
    )
    parser.addoption(ALL, action="store_true", help="run all of the tests marked cut_in_vm")


def runs_in_vm(item: pytest.Item) -> bool:
    """Return whether a test runs in the virtual machine."""
    return item.get_closest_marker(MARKER) is not None and not item.config.getoption(HERE)


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that only `ALL` runs, and those for other kernels."""
    version = os.uname().release if config.getoption(HERE) else kernel_version()
    out = [
        item
        for item in items
        if not (_is_for(item, version) and (config.getoption(ALL) or _in_cut(item)))
    ]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def _in_cut(item: pytest.Item) -> bool:
    marker = item.get_closest_marker(CUT)
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return marker is None or bool(marker.kwargs["chosen"](parameters))


def _is_for(item: pytest.Item, version: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)", version)
    marker = item.get_closest_marker(KERNELS)
    if marker is None or found is None:
        return True
    since: tuple[int, int] = marker.kwargs.get("since", (0, 0))
    before: tuple[int, int] = marker.kwargs.get("before", (1000, 0))
    return since <= (int(found[1]), int(found[2])) < before


def check_names(items: Sequence[pytest.Item]) -> None:
    """Raise UsageError for a module whose name does not keep its `vm` tests with one worker."""
    for item in items:
        if runs_in_vm(item) and not item.path.name.endswith(f"_{MARKER}.py"):
            raise pytest.UsageError(
                f"{item.path.name} has tests marked {MARKER}: "
                f"a name that ends in _{MARKER}.py keeps them together"
            )


class VmPlugin:
    """The tests marked `vm` of one pytest session."""

    def __init__(self) -> None:
        self._missing = missing_requirement()
        self._run: GuestRun | None = None
        self._stack = ExitStack()

    def pytest_unconfigure(self) -> None:
        self._stack.close()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report a test that ran in the machine; return None for any other test."""
        if not runs_in_vm(item):
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in self._outcome(item):
            report = hook.pytest_report_from_serializable(config=item.config, data=data)
            if isinstance(report.longrepr, list):  # JSON has a skip's place and reason as a list
                report.longrepr = tuple(report.longrepr)
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _boot(self, session: pytest.Session) -> GuestRun:
        modes = session.config.getoption("--modes")
        tests = [item.nodeid for item in session.items if runs_in_vm(item)]
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pyproxy-vm-")))
        (folder / "tests").write_text("\n".join(tests))
        environment = [f"{name}={os.environ[name]}" for name in _ENVIRONMENT if name in os.environ]
        runner = [".venv/bin/python", "-m", "pytest", *_PLUGINS, "-p", "tests.vm.recorder"]
        all_or_not = [ALL] if session.config.getoption(ALL) else []
        chosen = [HERE, *all_or_not, f"--modes={modes}", "@/run/results/tests"]
        command = ["env", *environment, *runner, *chosen]
        machine = VirtualMachine(boot_command(folder, shlex.join(command)), folder / "console")
        return self._stack.enter_context(GuestRun(machine, folder / "reports"))

    def _outcome(self, item: pytest.Item) -> Sequence[Report]:
        if not self._missing:
            self._run = self._run or self._boot(item.session)
            return self._run.outcome(item.nodeid)
        if os.environ.get("PYPROXY_REQUIRE_KERNEL") == "1":
            return [failed(item.nodeid, f"skipped where PYPROXY_REQUIRE_KERNEL=1: {self._missing}")]
        return [skipped(item.nodeid, item.location, self._missing)]
