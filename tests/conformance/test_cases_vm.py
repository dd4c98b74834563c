"""The cases again, on the kernel of the virtual machine: an older one, with IPVS and SCTP."""

from __future__ import annotations

import pytest
from pyproxy_lab import modes
from pyproxy_lab.conformance import cases
from pyproxy_lab.conformance.cases import Case
from pyproxy_lab.conformance.runner import Runner

from tests.conformance import FOLDER
from tests.vm import plugin

pytestmark = [pytest.mark.packets, pytest.mark.vm]

CASES = {file.name: cases.read(file) for file in sorted(FOLDER.glob("*.yaml"))}
COMMON = ("01-cluster-ip.yaml", "02-endpoints.yaml")
"""The files that run in nftables mode without --all-in-vm; this machine's kernel runs all."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    some = metafunc.function is test_case_in_nftables_mode
    some = some and not metafunc.config.getoption(plugin.ALL)
    found = [
        case
        for name, content in CASES.items()
        for case in content
        if not some or name in COMMON or case.needs
    ]
    metafunc.parametrize("case", found, ids=lambda case: case.name)


@pytest.mark.parametrize("mode", [modes.IPVS], ids=["ipvs"], indirect=True, scope="module")
def test_case(runner: Runner, case: Case) -> None:
    failures = runner.run(case)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("mode", [modes.NFTABLES], ids=["nftables"], indirect=True, scope="module")
def test_case_in_nftables_mode(runner: Runner, case: Case) -> None:
    failures = runner.run(case)
    assert not failures, "\n".join(failures)
