"""One network for all cases, and one agent for all cases of a mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.conformance.runner import Runner, await_agent
from pyproxy_lab.conformance.tracing import check_of
from pyproxy_lab.modes import LabMode

from tests import modes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def runner(cluster: Cluster, mode: LabMode, request: pytest.FixtureRequest) -> Iterator[Runner]:
    with cluster.agent("na", mode) as agent:
        # In the virtual machine a trace takes longer than the packets, and is no other than here.
        traces = request.node.get_closest_marker("vm") is None
        check = check_of(mode, cluster.network, "na") if traces else None
        barrier = cluster.barrier("na", agent)
        runner = Runner(cluster.client, cluster.network, mode, check=check, barrier=barrier)
        await_agent(runner, agent)
        yield runner
        agent.require_alive()
    # The next mode comes to an empty node: clients use the same ports again.
    node = cluster.network.namespace("na")
    modes.wipe(mode, node)
    node.run(["conntrack", "-F"], check=False)
