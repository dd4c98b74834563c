"""The agent shuts down while its source waits for a server that does not respond."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyproxy_lab.network import Network
from pyproxy_lab.topology import API_ADDRESS, TWO_NODES

from tests.agent.live import Stage

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
        with stage.agent(server.url, "--master", masters) as agent:
            agent.does(lambda: stage.health() == 200, "the first commit")
            with server.away():
                agent.does(
                    lambda: "the API server is unreachable" in agent.said(), "the agent logs it"
                )
                assert stage.health() == 200
                # Only a connection attempt cannot be interrupted, so wait for one.
                before = connecting(stage, silent)
                agent.does(lambda: connecting(stage, silent) - before, "it tries again")
                agent.signal(signal.SIGTERM)
                statuses = [stage.health()]
                while statuses[-1]:
                    statuses.append(stage.health())
                assert agent.ends() == 0
    assert 503 in statuses
    assert set(statuses) <= {200, 503, 0}


def connecting(stage: Stage, address: str) -> set[str]:
    """Return the local addresses of sockets that are connecting to an address."""
    options = ["-H", "-t", "-n", "state", "syn-sent", "dst", address]
    lines = stage.here.run(["ss", *options]).stdout.splitlines()
    return {line.split()[2] for line in lines}
