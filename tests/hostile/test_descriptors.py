"""More health-check node ports than the agent has descriptors: it still probes and repairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.network import Network

from pyproxy.dataplane.nftables.schema import TABLE
from tests.agent.live import Process, Stage, endpoint_slice, service

pytestmark = pytest.mark.kernel

MANY = 60
ADDRESSES = [f"198.51.100.{number}" for number in range(1, 6)]
FEW, ENOUGH = 256, 4096
"""Limits of open files; all listeners together are more than the first one."""

WEB = "10.96.7.1"
INCOMPLETE = "pyproxy_incomplete_health_check_ports"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Network() as network:
        network.namespace("na").ip([f"addr add {each}/32 dev eth0" for each in ADDRESSES])
        yield Stage(network, tmp_path)


def load_balancer(number: int) -> dict[str, Any]:
    return service(
        f"lb{number}",
        f"10.96.8.{number}",
        node_port=30000 + number,
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=31000 + number,
    )


def load(server: ApiServer) -> None:
    server.load(
        [
            service("web", WEB),
            endpoint_slice("web", ["10.244.1.11"]),
            *(load_balancer(number) for number in range(1, MANY + 1)),
        ]
    )


def agent(stage: Stage, server: ApiServer, soft: int, hard: int) -> Process:
    return stage.agent(
        server.url,
        *("--nodeport-addresses", "198.51.100.0/24"),
        runner=limited(soft, hard),
    )


def limited(soft: int, hard: int) -> tuple[str, str]:
    return "prlimit", f"--nofile={soft}:{hard}"


def test_repairs_go_on_without_descriptors_for_all_ports(stage: Stage) -> None:
    with stage.server() as server:
        load(server)
        with agent(stage, server, FEW, FEW) as process:
            process.does(lambda: stage.health() == 200, "the first commit")
            process.does(lambda: stage.metrics().get(INCOMPLETE, 0) > 0, "ports without a listener")
            complete = stage.kernel()
            stage.nft("delete", "table", "inet", TABLE)
            process.does(lambda: stage.kernel() == complete, "the repair of a deleted table")
            assert stage.health() == 200
            assert stage.metrics()["process_open_fds"] < FEW - 64
            said = process.said()
            assert 0 < said.count("spec.healthCheckNodePort") <= 10
            assert "Traceback" not in said


def open_files(stage: Stage) -> float:
    return stage.metrics()["process_open_fds"]


def test_the_limit_of_open_files_is_raised_at_the_start(stage: Stage) -> None:
    with stage.server() as server:
        load(server)
        with agent(stage, server, FEW, ENOUGH) as process:
            process.does(lambda: stage.health() == 200, "the first commit")
            assert stage.metrics()["process_max_fds"] == ENOUGH
            enough = MANY * len(ADDRESSES)
            process.does(
                lambda: stage.metrics()[INCOMPLETE] == 0 and open_files(stage) > enough,
                "all health-check node ports",
            )


def test_one_socket_of_a_port_serves_all_addresses(stage: Stage) -> None:
    with stage.server() as server:
        load(server)
        flags = ("--nodeport-addresses", "0.0.0.0/0")
        with stage.agent(server.url, *flags, runner=limited(FEW, FEW)) as process:
            process.does(lambda: stage.health() == 200, "the first commit")
            # Sixty sockets of ports fit, and three hundred would not. They open after the commit.
            process.does(lambda: stage.metrics()[INCOMPLETE] == 0, "all health-check node ports")
            assert open_files(stage) < 2 * MANY
