"""Assign tests to workers, for `pytest --numprocesses`."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

from tests.modes import KINDS

_MODE = re.compile(rf"\[(?:.*-)?({'|'.join(re.escape(kind.name) for kind in KINDS)})[-\]]")


class ByModuleAndMode(LoadScopeScheduling):
    """Assign the tests of one module in one mode to one worker, because they share fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def group(nodeid: str) -> str:
    """Return the name of a test's group: its module, with its mode if it has one.

    All modules named `test_..._vm.py` form one group, which the virtual machine runs.
    """
    module, _, test = nodeid.partition("::")
    if module.endswith("_vm.py"):
        return "vm"
    mode = _MODE.search(test)
    return f"{module}[{mode[1]}]" if mode else module
