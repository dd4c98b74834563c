"""Established TCP connections outlive slices, policies, Services and agents."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network

from pyproxy.config.modes import ProxyMode

from .proxied import Object, Proxied, balanced, endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

CLUSTER_CIDR = "--cluster-cidr=10.244.0.0/16,fd10::/16"
ADDRESSES = ("10.96.0.1", "192.0.2.1", "198.51.100.1", "172.30.0.11", "fd00:10:96::1", "fd30::11")
NODE_PORT = 30080


def web(**spec: Any) -> Object:
    return service(
        "web",
        "10.96.0.1",
        "fd00:10:96::1",
        ports=[{"port": 80, "nodePort": NODE_PORT}],
        type="LoadBalancer",
        externalIPs=["192.0.2.1"],
        status=balanced("198.51.100.1"),
        **spec,
    )


def slices(*pods: str) -> tuple[Object, ...]:
    return (endpoint_slice("web", *pods), endpoint_slice("web", *pods, family="IPv6"))


class Connection:
    """A connection that says something now and then."""

    def __init__(self, client: Namespace, address: str) -> None:
        port = NODE_PORT if address.endswith("::11") or address == "172.30.0.11" else 80
        self.address = address
        self._socket = client.call(partial(socket.create_connection, (address, port), 5))
        self._file = self._socket.makefile("r")
        self.peer = self._file.readline().partition(" ")[0]

    def lives(self) -> None:
        """Fail unless what answers is still the pod that took the connection."""
        self._socket.sendall(b"still there?")
        assert self._file.readline().partition(" ")[0] == self.peer, self.address

    def close(self) -> None:
        self._file.close()
        self._socket.close()


REMEMBERS = {
    ProxyMode.NFTABLES: "affinity-cluster4",
    ProxyMode.IPTABLES: "--rcheck",
    ProxyMode.IPVS: "persistent",
}
"""A part of the kernel's listing that shows session affinity."""


@contextmanager
def held(node: Proxied, pod: str) -> Iterator[None]:
    """Hold connections to each kind of address from outside, a pod and the node meanwhile."""
    for address in ADDRESSES:
        port = NODE_PORT if address in (ADDRESSES[3], ADDRESSES[5]) else 80
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        node.reaches("ext", target, pod)
    clients = [node.network.namespace(who) for who in ("ext", "a2", "na")]
    connections = [Connection(client, address) for client in clients for address in ADDRESSES]
    try:
        assert {each.peer for each in connections} == {pod}
        yield
        for each in connections:
            each.lives()
    finally:
        for each in connections:
            each.close()


@pytest.fixture
def node(mode: LabMode, network: Network, tmp_path: Path) -> Iterator[Proxied]:
    with proxied(
        mode, network, tmp_path / "x", CLUSTER_CIDR, objects=(web(), *slices("a1"))
    ) as made:
        yield made


def test_they_outlive_the_endpoints_removal(node: Proxied) -> None:
    with held(node, "a1"):
        node.apply(*slices("b1"))
        node.reaches("a2", "10.96.0.1:80", "b1")
        node.reaches("ext", "[fd30::11]:30080", "b1")


def test_they_outlive_the_last_endpoints_removal_and_the_service(node: Proxied) -> None:
    with held(node, "a1"):
        node.apply(*slices())
        node.is_refused("a2", "10.96.0.1:80")
        node.is_refused("ext", "198.51.100.1:80")
        node.delete("service", "web")
        node.is_dropped("a2", "10.96.0.1:80")


@pytest.mark.parametrize(
    "changes",
    [
        {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"},
        {"sessionAffinity": "ClientIP"},
        {"loadBalancerSourceRanges": ["203.0.113.0/24"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_they_outlive_a_change_of_the_services_policy(
    mode: LabMode, network: Network, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with (
        proxied(
            mode, network, tmp_path / "x", CLUSTER_CIDR, objects=(web(), *slices("b1"))
        ) as node,
        held(node, "b1"),
    ):
        node.apply(web(**changes))
        if "loadBalancerSourceRanges" in changes:
            node.is_dropped("ext", "198.51.100.1:80")
        elif "externalTrafficPolicy" in changes:
            node.is_dropped("ext", "198.51.100.1:80")
            node.is_dropped("a2", "10.96.0.1:80")
        else:
            node.holds(REMEMBERS[mode.proxy_mode])


def test_they_outlive_the_agent_and_its_successor(node: Proxied) -> None:
    with held(node, "a1"):
        node.agent.stop()
        assert node.once("a2", "10.96.0.1:80").reached == {"a1": 1}
        node.apply(*slices("b1"))
        with node.agent:
            node.reaches("a2", "10.96.0.1:80", "b1")
