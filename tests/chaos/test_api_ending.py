"""The agent shuts down while its source waits for a server that does not respond."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.network import Network
from pyproxy_lab.topology import API_ADDRESS, TWO_NODES

from tests.agent.live import Process, Stage
from tests.waiting import until

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Network(TWO_NODES) as network:
        folder: Path = tmp_path_factory.mktemp("ending")
        yield Stage(network, folder)


def test_healthz_fails_before_the_process_ends(stage: Stage) -> None:
    """A connection attempt cannot be interrupted, so the shutdown takes its full second."""
    silent = API_ADDRESS.rpartition(".")[0] + ".254"
    with stage.server() as server:
        masters = f"{server.url},http://{silent}:6443"
        stage.here.run(["nft", "add table inet silence"])
        stage.here.run(
            ["nft", "add chain inet silence out { type filter hook output priority 0; }"]
        )
        stage.here.run(["nft", f"add rule inet silence out ip daddr {silent} drop"])
        found: set[int] = set()

        def fails_before_the_end() -> bool:
            with stage.agent(server.url, "--master", masters) as agent:
                found.clear()
                found.update(statuses_at_the_end(stage, server, agent, silent))
            return 503 in found

        # A busy machine's probe may come after the second of the shutdown.
        until(fails_before_the_end, lambda: f"the health check fails, not only {found}")


def statuses_at_the_end(
    stage: Stage, server: ApiServer, agent: Process, silent: str
) -> Iterator[int]:
    """End an agent during its connection attempt; yield the health checks' statuses meanwhile."""
    agent.does(lambda: stage.health() == 200, "the first commit")
    with server.away():
        agent.does(lambda: "the API server is unreachable" in agent.said(), "the agent logs it")
        assert stage.health() == 200
        # Only a connection attempt cannot be interrupted, so wait for one.
        before = connecting(stage, silent)
        agent.does(lambda: connecting(stage, silent) - before, "it tries again")
        agent.signal(signal.SIGTERM)
        while status := stage.health():
            assert status in {200, 503}
            yield status
        assert agent.ends() == 0


def connecting(stage: Stage, address: str) -> set[str]:
    """Return the local addresses of sockets that are connecting to an address."""
    options = ["-H", "-t", "-n", "state", "syn-sent", "dst", address]
    lines = stage.here.run(["ss", *options]).stdout.splitlines()
    return {line.split()[2] for line in lines}
