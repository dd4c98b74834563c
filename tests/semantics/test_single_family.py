"""Nodes without IPv6: IPv4 is served as on any node, and the log says so once."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network
from pyproxy_lab.topology import TWO_NODES

from tests.waiting import PATIENCE

from .proxied import Object, Proxied, balanced, endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

HEALTH, CHECKS, PORT = 10256, 32000, 30080
NODE = "172.30.0.11"
WEB = service(
    "web",
    "10.96.0.1",
    "fd00:10:96::1",
    ports=[{"port": 80, "nodePort": PORT}],
    type="LoadBalancer",
    externalTrafficPolicy="Local",
    healthCheckNodePort=CHECKS,
    status=balanced("198.51.100.1", "2001:db8:99::1"),
)
ONLY6 = service("only6", "fd00:10:96::6")
OBJECTS: tuple[Object, ...] = (
    WEB,
    endpoint_slice("web", "a1"),
    endpoint_slice("web", "a1", family="IPv6"),
    ONLY6,
    endpoint_slice("only6", "a1", family="IPv6"),
)
FLAGS = ("--nodeport-addresses=primary,all", f"--healthz-bind-address=[::]:{HEALTH}")


def launcher(way: str) -> list[str]:
    return [sys.executable, "-m", "tests.without_ipv6", way]


def status(node: Proxied, port: int) -> int:
    def get() -> int:
        connection = http.client.HTTPConnection(NODE, port, timeout=PATIENCE)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status
        finally:
            connection.close()

    return node.network.namespace("ext").call(get)


def serves_ipv4(node: Proxied) -> None:
    node.reaches("a2", "10.96.0.1:80/tcp", "a1")
    for to in (f"{NODE}:{PORT}/tcp", "198.51.100.1:80/tcp"):
        node.reaches("ext", to, "a1")
    assert status(node, HEALTH) == 200
    assert status(node, CHECKS) == 200
    # A change later on is written at once, without a sync that fails meanwhile.
    node.apply(endpoint_slice("web", "a2"))
    node.reaches("a1", "10.96.0.1:80/tcp", "a2")
    log = node.agent.log.read_text()
    assert "sync failed" not in log
    assert "RejectedByKernel" not in log
    assert "invalid object" not in log


def knows_its_families(node: Proxied, manifests: Path, way: Sequence[str]) -> None:
    """Check the commands that run without an agent."""

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        place = ("--manifests", str(manifests), "--hostname-override", TWO_NODES.site("na").node)
        # An agent of the machine that runs the tests has the default socket.
        flags = ("--inspect-socket=", *node.mode.flags, *FLAGS)
        words = [*way, sys.executable, "-m", "pyproxy", *command, *place, *flags]
        return node.network.namespace("na").call(
            lambda: subprocess.run(words, capture_output=True, text=True, check=False)
        )

    compared = run("diff")
    assert (compared.returncode, compared.stdout) == (0, "the kernel state is the desired state\n")
    explained = run("explain", "default/web")
    assert "Services have IPv6 addresses, which this node does not serve" in explained.stdout


def is_cleaned_up(node: Proxied, way: Sequence[str]) -> None:
    node.agent.stop()
    command = [*way, sys.executable, "-m", "pyproxy", "cleanup"]
    done = node.network.namespace("na").call(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False)
    )
    assert done.returncode == 0, done.stderr


def test_a_node_on_which_ipv6_is_disabled(mode: LabMode, tmp_path: Path) -> None:
    with Network() as network:
        network.namespace("na").sysctl({"ipv6/conf/all/disable_ipv6": 1})
        with proxied(mode, network, tmp_path / "x", *FLAGS, objects=OBJECTS) as node:
            serves_ipv4(node)
            node.logs("configuration problem family_not_served")
            log = node.agent.log.read_text()
            assert log.count("IPv6 is not served") == 1
            assert log.count("configuration problem family_not_served") == 1
            for address in ("fd00:10:96::1", "fd00:10:96::6", "2001:db8:99::1"):
                assert address not in node.listing()
            # Without a restart, IPv6 is served from the moment that the node has it.
            network.namespace("na").sysctl({"ipv6/conf/all/disable_ipv6": 0})
            node.logs("IPv6 is served again")
            node.holds("fd00:10:96::6")
            is_cleaned_up(node, ())


@pytest.mark.parametrize("way", ["sockets", "programs"])
def test_an_agent_without_ipv6(mode: LabMode, network: Network, tmp_path: Path, way: str) -> None:
    arguments = launcher(way)
    with proxied(
        mode, network, tmp_path / "x", *FLAGS, objects=OBJECTS, launcher=arguments
    ) as node:
        serves_ipv4(node)
        log = node.agent.log.read_text()
        # Rules over netlink need neither IPv6 sockets nor ip6tables.
        lacks = mode.name == "iptables-legacy" or (
            mode.name == "iptables-nft" and way == "programs"
        )
        assert log.count("IPv6 is not served") == lacks
        assert log.count("iptables mode without IPv6") == lacks
        if lacks and way == "programs":
            knows_its_families(node, tmp_path / "x" / "manifests", arguments)
        is_cleaned_up(node, arguments)
