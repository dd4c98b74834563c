"""Skip tests whose requirements the machine lacks, and order the rest for several workers."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest
from pyproxy_lab.modes import LabMode

from tests import modes
from tests.vm import plugin as vm

if TYPE_CHECKING:
    from xdist.remote import Producer

    from tests.sharing import ByModuleAndMode

NEEDS_KERNEL = ("kernel", "packets", "vm")
TOOLS = ("ip", "nft")
LONGEST = (
    "tests/conformance/test_cases.py",
    "tests/soak/test_soak.py",
    "tests/chaos/test_restart.py",
    "tests/takeover/test_packets.py",
    "tests/lab/test_up.py",
    "tests/takeover/test_modes.py",
    "tests/inspect/test_explain_firewalls.py",
    "tests/dataplane/nftables/test_tracer_on_kernel.py",
    "tests/lab/test_tutorials.py",
    "tests/lab/test_up_killed.py",
    "tests/chaos/test_restart_killed.py",
    "tests/ui/test_page.py",
    "tests/kubectl/test_agents.py",
    "tests/semantics/test_node_ports.py",
    "tests/dataplane/test_conntrack_reconciler.py",
    "tests/kubectl/test_check.py",
    "tests/lab/test_learn.py",
    "tests/lab/test_commands.py",
    "tests/chaos/test_modes.py",
    "tests/bench/test_fleet.py",
)
"""The modules that take longest, longest first: `pytest --durations`, and their CPU time."""

PROPERTIES = "_hypothesis_pytestplugin"
"""hypothesis' plugin; the virtual machine, which tests no properties, does without it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    modes.options(parser)
    vm.options(parser)
    parser.addoption(
        "--lab-kills",
        type=int,
        default=4,
        help="labs that are killed at random moments (default 4)",
    )
    parser.addoption(
        "--all-tutorials",
        action="store_true",
        help="run all tutorials in a lab, not only enough for each command of kubectl",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(vm.VmPlugin())
    if PROPERTIES in sys.modules:
        # Imported here because the virtual machine takes seconds to read hypothesis.
        from tests.examples import register_profiles  # noqa: PLC0415

        register_profiles()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    modes.parametrize(metafunc)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    modes.leave_out(config, items)
    vm.leave_out(config, items)
    vm.check_names(items)
    # The longest groups start first, so that no worker begins one when the others are done. The
    # virtual machine takes longest of all.
    items.sort(key=lambda item: (not vm.runs_in_vm(item), _rank(item), not _needs_kernel(item)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModuleAndMode:
    # Imported here because a run without workers needs no xdist.
    from tests.sharing import ByModuleAndMode  # noqa: PLC0415

    return ByModuleAndMode(config, log)


def _rank(item: pytest.Item) -> int:
    module = item.nodeid.partition("::")[0]
    return LONGEST.index(module) if module in LONGEST else len(LONGEST)


def _needs_kernel(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in NEEDS_KERNEL)


@pytest.fixture(scope="module")
def mode(request: pytest.FixtureRequest) -> LabMode:
    """The mode that an agent under test runs in: a test with this fixture runs in every mode."""
    kind: LabMode = request.param
    return kind


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item,
) -> Generator[None, object, object]:
    """Undo the logging configuration of a command that ran in this process."""
    root, own = logging.getLogger(), logging.getLogger("pyproxy")
    handlers, root_level, own_level = root.handlers[:], root.level, own.level
    result = yield
    root.handlers[:] = handlers
    root.setLevel(root_level)
    own.setLevel(own_level)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that this machine cannot run, before its fixtures are set up."""
    if not _needs_kernel(item):
        return
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"needs the command {tool}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped kernel test if PYPROXY_REQUIRE_KERNEL forbids skips."""
    report = yield
    if (
        report.skipped
        and call.excinfo is not None
        and os.environ.get("PYPROXY_REQUIRE_KERNEL") == "1"
        and _needs_kernel(item)
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped where PYPROXY_REQUIRE_KERNEL=1: {call.excinfo.value}"
    return report
