"""Every conformance case as a test of its own, all against one agent, with real packets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.lab.cluster import Cluster
from pyproxy.lab.conformance import cases
from pyproxy.lab.conformance.cases import Case
from pyproxy.lab.conformance.runner import Runner, await_agent

pytestmark = pytest.mark.packets

MODE = "nftables"
CASES = [case for case in cases.read(Path(__file__).with_name("cases")) if MODE not in case.without]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Cluster() as cluster, cluster.agent("na", MODE) as agent:
        runner = Runner(cluster.client, cluster.network, MODE)
        await_agent(runner, agent)
        yield runner
        agent.require_alive()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(runner: Runner, case: Case) -> None:
    failures = runner.run(case)
    assert not failures, "\n".join(failures)
