"""One network for all cases, and one agent for all cases of a mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.cluster import Cluster
from pyproxy_lab.conformance.runner import Runner, await_agent
from pyproxy_lab.conformance.tracing import check_of
from pyproxy_lab.modes import IPVS, LabMode

from tests import modes
from tests.vm import plugin

VM_SILENCE = 0.2
"""Seconds that a probe in the virtual machine waits for a packet that must not come."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def runner(cluster: Cluster, mode: LabMode, request: pytest.FixtureRequest) -> Iterator[Runner]:
    with cluster.agent("na", mode) as agent:
        in_vm = request.node.get_closest_marker("vm") is not None
        traces = not in_vm or (mode is IPVS and request.config.getoption(plugin.ALL))
        runner = Runner(
            cluster.client,
            cluster.network,
            mode,
            # The tracer takes a fifth of the time in the virtual machine, so only a whole run
            # traces there, and only the mode that has no other kernel.
            check=check_of(mode, cluster.network, "na") if traces else None,
            barrier=cluster.barrier("na", agent),
        )
        if in_vm:
            # The guest's clock counts instructions: a busy host cannot delay a packet beyond this.
            runner.longest_silence = VM_SILENCE
        await_agent(runner, agent)
        yield runner
        agent.require_alive()
    # The next mode comes to an empty node: clients use the same ports again.
    node = cluster.network.namespace("na")
    modes.wipe(mode, node)
    node.run(["conntrack", "-F"], check=False)
