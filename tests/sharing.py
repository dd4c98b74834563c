"""How tests are shared out to workers that run beside each other, with `pytest --numprocesses`."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

from tests.modes import KINDS

_MODE = re.compile(rf"\[(?:.*-)?({'|'.join(re.escape(kind.name) for kind in KINDS)})[-\]]")


class ByModuleAndMode(LoadScopeScheduling):
    """The tests of one module in one mode go to one worker, for they share fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def group(nodeid: str) -> str:
    """Say what a test stays together with: its module, and its mode where it has one.

    Modules of tests for the virtual machine are called `test_..._vm.py`, and stay together.
    """
    module, _, test = nodeid.partition("::")
    if module.endswith("_vm.py"):
        return "vm"
    mode = _MODE.search(test)
    return f"{module}[{mode[1]}]" if mode else module
