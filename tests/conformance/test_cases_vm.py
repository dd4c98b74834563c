"""The cases again, on the kernel of the virtual machine: an older one, with IPVS and SCTP."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

import pytest
from pyproxy_lab import modes
from pyproxy_lab.conformance import cases
from pyproxy_lab.conformance.cases import Case
from pyproxy_lab.conformance.runner import Runner
from pyproxy_lab.modes import LabMode

from tests.conformance import FOLDER
from tests.modes import KINDS

pytestmark = [pytest.mark.packets, pytest.mark.vm]

CASES = {file.name: cases.read(file) for file in sorted(FOLDER.glob("*.yaml"))}
ALL = [case for found in CASES.values() for case in found]
CUT = {
    modes.NFTABLES: ("01-cluster-ip.yaml", "02-endpoints.yaml"),
    modes.IPTABLES_LEGACY: (),
    modes.IPTABLES_NFT: (),
    modes.IPVS: tuple(CASES),
}
"""The files that run without --all-in-vm; this machine's kernel runs all but those of IPVS."""


def _in_cut(params: Mapping[str, object]) -> bool:
    match params:
        case {"mode": LabMode() as mode, "case": Case() as case}:
            return bool(case.needs) or any(case in CASES[file] for file in CUT[mode])
    return True


@pytest.mark.cut_in_vm(chosen=_in_cut)
@pytest.mark.parametrize("case", ALL, ids=attrgetter("name"))
@pytest.mark.parametrize("mode", KINDS, ids=attrgetter("name"), indirect=True, scope="module")
def test_case(runner: Runner, case: Case) -> None:
    failures = runner.run(case)
    assert not failures, "\n".join(failures)
