"""The agent's process is told to end while its threads wait for a server that says nothing."""

from __future__ import annotations

import signal
import time
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


def test_load_balancers_hear_of_it_before_the_process_is_gone(stage: Stage) -> None:
    """Connecting cannot be interrupted, so here the end takes the second that it may take."""
    nobody = API_ADDRESS.rpartition(".")[0] + ".254"
    with stage.server() as server:
        masters = f"{server.url},http://{nobody}:6443"
        stage.here.run(["nft", "add table inet silence"])
        stage.here.run(
            ["nft", "add chain inet silence out { type filter hook output priority 0; }"]
        )
        stage.here.run(["nft", f"add rule inet silence out ip daddr {nobody} drop"])
        with stage.agent(server.url, "--master", masters) as agent:
            agent.does(lambda: stage.health() == 200, "the first commit")
            with server.away():
                agent.does(lambda: "the API server is unreachable" in agent.said(), "it is missed")
                assert stage.health() == 200
                # Between two attempts there is nothing that could not be interrupted.
                before = connecting(stage, nobody)
                agent.does(lambda: connecting(stage, nobody) - before, "it tries again")
                agent.signal(signal.SIGTERM)
                began = time.monotonic()
                heard = [stage.health()]
                while heard[-1]:
                    heard.append(stage.health())
                assert agent.ends_within(5.0) == 0
                assert time.monotonic() - began < 4.0
    assert 503 in heard
    assert set(heard) <= {200, 503, 0}


def connecting(stage: Stage, address: str) -> set[str]:
    """The sockets, by their own address and port, that wait for an answer from an address."""
    options = ["-H", "-t", "-n", "state", "syn-sent", "dst", address]
    lines = stage.here.run(["ss", *options]).stdout.splitlines()
    return {line.split()[2] for line in lines}
