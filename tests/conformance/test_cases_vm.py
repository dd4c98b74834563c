"""The cases again, on the kernel of the virtual machine: an older one, with IPVS and SCTP.

Without --all-in-vm a cut runs: what this machine's kernel cannot run, and the features that an old
kernel may lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

import pytest
from pyproxy_lab import modes
from pyproxy_lab.conformance import cases
from pyproxy_lab.conformance.cases import Case
from pyproxy_lab.conformance.runner import Runner
from pyproxy_lab.modes import LabMode

from tests.conformance import FOLDER, SAME_IN_ALL_MODES
from tests.modes import KINDS

pytestmark = [pytest.mark.packets, pytest.mark.vm]

CASES = {file.name: cases.read(file) for file in sorted(FOLDER.glob("*.yaml"))}
ALL = [case for found in CASES.values() for case in found]
FEATURES = frozenset(
    {
        "cluster-ip reaches every ready endpoint, from everywhere in the cluster",
        "a pod that reaches itself through its own service is masqueraded",
        "UDP",
        "dual stack",
        "no endpoints is a rejection, at once, on every kind of address",
        "source ranges guard the load balancer address alone",
        "client IP affinity keeps a client on one backend",
        "internal and external policy Local together",
        "a UDP node port follows its service too",
        "an SCTP service reaches its endpoints",
    }
)
"""A case for each kernel feature that the rules use."""


def _in_cut(params: Mapping[str, object]) -> bool:
    match params:
        case {"mode": LabMode() as mode, "case": Case() as case}:
            # The same rules as with nft, for older code, and the same as without the fast path.
            if mode in (modes.IPTABLES_LEGACY, modes.NFTABLES_OFFLOAD):
                return False
            if mode is not modes.IPVS:
                return case.name in FEATURES or (mode is modes.NFTABLES and "sctp" in case.needs)
            # No other kernel of `make test` runs this mode.
            return case.name in FEATURES or (
                not any(case in CASES[file] for file in SAME_IN_ALL_MODES)
                and "health check port" not in case.name
                and "longer than its timeout" not in case.name
            )
    return True


assert {case.name for case in ALL} >= FEATURES


@pytest.mark.cut_in_vm(chosen=_in_cut)
@pytest.mark.parametrize("case", ALL, ids=attrgetter("name"))
@pytest.mark.parametrize(
    "mode",
    [*KINDS, modes.NFTABLES_OFFLOAD],
    ids=attrgetter("name"),
    indirect=True,
    scope="module",
)
def test_case(runner: Runner, case: Case) -> None:
    failures = runner.run(case)
    assert not failures, "\n".join(failures)
