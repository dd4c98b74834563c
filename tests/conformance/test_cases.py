"""Every conformance case as a test of its own, all of a mode against one agent, with packets.

What the mode's packet tracer says at that moment is held against every probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.lab.cluster import Cluster
from pyproxy.lab.conformance import cases
from pyproxy.lab.conformance.cases import Case
from pyproxy.lab.conformance.runner import Runner, await_agent
from pyproxy.lab.conformance.tracing import check_of
from pyproxy.lab.modes import LabMode

pytestmark = pytest.mark.packets

CASES = list(cases.read(Path(__file__).with_name("cases")))


@pytest.fixture(scope="module")
def runner(mode: LabMode) -> Iterator[Runner]:
    with Cluster() as cluster, cluster.agent("na", mode) as agent:
        check = check_of(mode, cluster.network, "na")
        runner = Runner(cluster.client, cluster.network, mode, check=check)
        await_agent(runner, agent)
        yield runner
        agent.require_alive()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(runner: Runner, case: Case) -> None:
    failures = runner.run(case)
    assert not failures, "\n".join(failures)
