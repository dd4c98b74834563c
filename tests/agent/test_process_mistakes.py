"""Mistakes in the flags: the agent names them in its log, status, explain and a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyproxy_lab.topology import API_ADDRESS

from tests.agent.live import Process, Stage, addresses, endpoint_slice, node, service

pytestmark = pytest.mark.kernel

WEB = "10.96.7.1"
METRIC = "pyproxy_configuration_problems"
OBJECTS = [service("web", WEB), endpoint_slice("web", addresses("a1"))]


def problem(stage: Stage, topic: str) -> float:
    return stage.metrics().get(f'{METRIC}{{problem="{topic}"}}', -1)


def named(stage: Stage, tmp_path: Path, agent: Process, topic: str, text: str) -> None:
    """Check that a mistake shows everywhere, and once in the log."""
    agent.does(lambda: problem(stage, topic) == 1, f"the metric of {topic}")
    assert agent.said().count(f"configuration problem {topic}: ") == 1
    assert text in agent.said()
    socket = f"--inspect-socket={tmp_path}/na.sock"
    for words in (("status",), ("explain", "shop/web")):
        assert text in stage.run(*words, socket).stdout


def test_a_wrong_node_name(stage: Stage, tmp_path: Path) -> None:
    with stage.server() as server:
        server.load(OBJECTS)
        with stage.agent(server.url) as agent:
            stage.until_served(agent, server, "the Service in the kernel")
        rules = stage.nft("-s", "list", "ruleset")
        with stage.agent(server.url, "--hostname-override=node-zzz") as agent:
            named(stage, tmp_path, agent, "node_not_found", "the cluster has no Node node-zzz")
            said = agent.said()
            assert "similar names: node-a" in said
            assert "waiting up to 30 s for Node node-zzz before the first sync" in said
            # A restart with the wrong name loses no rule while it waits.
            assert stage.nft("-s", "list", "ruleset") == rules
            renamed: dict[str, Any] = node(stage.network)
            server.load([renamed | {"metadata": {"name": "node-zzz"}}])
            agent.does(lambda: problem(stage, "node_not_found") == 0, "the Node is found")
            agent.does(lambda: "serving node node-zzz in nftables" in agent.said(), "the sync")
            assert stage.health() == 200


@pytest.mark.parametrize(
    ("cidr", "topic", "text"),
    [
        ("fd00:10::/64", "cluster_cidr_family", "clusterCIDR fd00:10::/64 has no IPv4 network"),
        ("", "cluster_cidr_missing", "clusterCIDR is not set, so that connections from outside"),
    ],
)
def test_a_wrong_cluster_cidr(
    stage: Stage, tmp_path: Path, cidr: str, topic: str, text: str
) -> None:
    with stage.server() as server:
        server.load(OBJECTS)
        with stage.agent(server.url, f"--cluster-cidr={cidr}") as agent:
            named(stage, tmp_path, agent, topic, text)
            assert "configuration may be incomplete or incorrect" in agent.said()
            assert "serving node node-a in nftables mode: 2 services, " in agent.said()
            assert stage.health() == 200


def test_a_name_of_another_node(stage: Stage, tmp_path: Path) -> None:
    other: dict[str, Any] = node(stage.network)
    other["metadata"]["name"] = "node-b"
    other["status"]["addresses"] = [{"type": "InternalIP", "address": "172.30.0.12"}]
    with stage.server() as server:
        server.load([*OBJECTS, other])
        with stage.agent(server.url, "--hostname-override=node-b") as agent:
            text = "this machine has none of the addresses of Node node-b (172.30.0.12)"
            named(stage, tmp_path, agent, "node_addresses_elsewhere", text)


def test_a_wrong_port_of_the_api_server(stage: Stage, tmp_path: Path) -> None:
    with stage.agent(f"http://{API_ADDRESS}:1") as agent:
        agent.does(lambda: problem(stage, "api_server_unreachable") == 1, "the metric")
        assert stage.health() == 503
        socket = f"--inspect-socket={tmp_path}/na.sock"
        out = stage.run("status", socket).stdout
        assert "api_server_unreachable" in out
        assert "Connection refused" in out
        said = agent.said()
        assert said.count("Connection refused") == 1
        assert "check the server's address in the kubeconfig or --master" in said
        assert "Traceback" not in said
