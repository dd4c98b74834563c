"""Every conformance case as a test of its own, all of a mode against one agent, with packets.

The mode's packet tracer must agree with every probe.
"""

from __future__ import annotations

import pytest
from pyproxy_lab.conformance import cases
from pyproxy_lab.conformance.cases import Case
from pyproxy_lab.conformance.runner import Runner

from tests.conformance import FOLDER, SAME_IN_ALL_MODES

CASES = [case for case in cases.read(FOLDER) if "sctp" not in case.needs]
"""Those that any kernel can run; the others are for the virtual machine's."""

SHARED = frozenset(case.name for file in SAME_IN_ALL_MODES for case in cases.read(FOLDER / file))

pytestmark = [pytest.mark.packets, pytest.mark.not_in_legacy(cases=SHARED)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(runner: Runner, case: Case) -> None:
    failures = runner.run(case)
    assert not failures, "\n".join(failures)
