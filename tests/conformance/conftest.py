"""One agent for all cases of a mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyproxy.lab.cluster import Cluster
from pyproxy.lab.conformance.runner import Runner, await_agent
from pyproxy.lab.conformance.tracing import check_of
from pyproxy.lab.modes import LabMode


@pytest.fixture(scope="module")
def runner(mode: LabMode) -> Iterator[Runner]:
    with Cluster() as cluster, cluster.agent("na", mode) as agent:
        check = check_of(mode, cluster.network, "na")
        runner = Runner(cluster.client, cluster.network, mode, check=check)
        await_agent(runner, agent)
        yield runner
        agent.require_alive()
