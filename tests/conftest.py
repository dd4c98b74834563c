"""What a test needs of the machine, and what becomes of it where the machine has not got it."""

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
PROPERTIES = "_hypothesis_pytestplugin"
"""The plugin of pytest that is there where properties are tested."""


def pytest_addoption(parser: pytest.Parser) -> None:
    modes.options(parser)
    vm.options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(vm.Suite())
    if PROPERTIES in sys.modules:
        _let_examples_take_their_time()


def _let_examples_take_their_time() -> None:
    # How long an example takes says more of the machine than of what is tested. The virtual machine
    # runs no properties, and takes a long time to read what finds examples.
    import hypothesis  # noqa: PLC0415

    hypothesis.settings.register_profile("pyproxy", deadline=None)
    hypothesis.settings.load_profile("pyproxy")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    modes.parametrize(metafunc)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    modes.leave_out(config, items)
    vm.check_names(items)
    # What waits for a kernel takes longest, and nobody should wait for what was begun last. The
    # virtual machine is the slowest, and works beside all others.
    items.sort(key=lambda item: (not vm.elsewhere(item), not _needs_kernel(item)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModuleAndMode:
    # Only who asks for workers needs xdist.
    from tests.sharing import ByModuleAndMode  # noqa: PLC0415

    return ByModuleAndMode(config, log)


def _needs_kernel(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in NEEDS_KERNEL)


@pytest.fixture(scope="module")
def mode(request: pytest.FixtureRequest) -> LabMode:
    """The mode that an agent under test runs in; whatever asks for it runs in all of them."""
    kind: LabMode = request.param
    return kind


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item,
) -> Generator[None, object, object]:
    """Undo what a command that ran in this process has made of logging."""
    root, own = logging.getLogger(), logging.getLogger("pyproxy")
    handlers, root_level, own_level = root.handlers[:], root.level, own.level
    result = yield
    root.handlers[:] = handlers
    root.setLevel(root_level)
    own.setLevel(own_level)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, before any fixture is set up, what this machine cannot run."""
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
    """Fail a skipped kernel test where PYPROXY_REQUIRE_KERNEL says that none may be skipped."""
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
