"""Established TCP connections survive a restart of the agent, and its absence.

Their survival of changes to a Service is a conformance case (17-connections.yaml).
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from pyproxy_lab.conformance.connections import Connections
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from tests.waiting import RESPONSE_TIMEOUT

from .proxied import Object, balanced, endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

TARGETS = (
    "10.96.0.1:80",
    "192.0.2.1:80",
    "198.51.100.1:80",
    "172.30.0.11:30080",
    "[fd00:10:96::1]:80",
    "[fd30::11]:30080",
)
WEB = service(
    "web",
    "10.96.0.1",
    "fd00:10:96::1",
    ports=[{"port": 80, "nodePort": 30080}],
    type="LoadBalancer",
    externalIPs=["192.0.2.1"],
    status=balanced("198.51.100.1"),
)


def slices(pod: str) -> tuple[Object, Object]:
    return (endpoint_slice("web", pod), endpoint_slice("web", pod, family="IPv6"))


def test_tcp_connections_survive_the_agent_and_its_successor(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    flag = "--cluster-cidr=10.244.0.0/16,fd10::/16"
    with (
        proxied(mode, network, tmp_path / "x", flag, objects=(WEB, *slices("a1"))) as node,
        closing(Connections()) as connections,
    ):
        for target in TARGETS:
            node.reaches("ext", target, "a1")
            for client in ("ext", "a2", "na"):
                connections.hold(network.namespace(client), client, target)
        node.agent.stop()
        seen = node.once("a2", "10.96.0.1:80", timeout=RESPONSE_TIMEOUT)
        assert seen.reached == {"a1": 1}
        assert connections.broken() == []
        node.apply(*slices("b1"))
        with node.agent:
            node.reaches("a2", "10.96.0.1:80", "b1")
        assert connections.broken() == []
