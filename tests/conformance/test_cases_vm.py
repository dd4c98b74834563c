"""The cases again, on the kernel of the virtual machine: an older one, with IPVS and SCTP."""

from __future__ import annotations

import pytest

from pyproxy.lab import modes
from pyproxy.lab.conformance import cases
from pyproxy.lab.conformance.cases import Case
from pyproxy.lab.conformance.runner import Runner
from tests.conformance.test_cases import FOLDER
from tests.vm import plugin

pytestmark = [pytest.mark.packets, pytest.mark.vm]

MODES = (modes.NFTABLES, modes.IPVS)
COMMON = "0[1-2]-*.yaml"
"""What every Service meets. The other cases, and what this machine's kernel does as well, take the
machine half an hour: they are for those who ask for all."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = cases.read(FOLDER)
    if not metafunc.config.getoption(plugin.ALL):
        common = [case for file in sorted(FOLDER.glob(COMMON)) for case in cases.read(file)]
        found = [*common, *(case for case in found if case.needs)]
    metafunc.parametrize("case", found, ids=lambda case: case.name)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name, indirect=True, scope="module")
def test_case(runner: Runner, case: Case) -> None:
    failures = runner.run(case)
    assert not failures, "\n".join(failures)
