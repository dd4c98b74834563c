"""UDP clients that keep their port follow their Service, through a whole agent, within a second."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from .proxied import Object, Proxied, balanced, endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

CLUSTER_CIDR = "--cluster-cidr=10.244.0.0/16,fd10::/16"
PORTS = [{"port": 53, "protocol": "UDP", "nodePort": 30053}]
POD_PORTS = [{"port": 8080, "protocol": "UDP"}]
TARGETS = (
    "10.96.0.1:53/udp",
    "[fd00:10:96::1]:53/udp",
    "192.0.2.1:53/udp",
    "198.51.100.1:53/udp",
    "172.30.0.11:30053/udp",
    "[fd30::11]:30053/udp",
)
WITHIN = 1.0
"""Seconds from the commit to the flow's end. The commit is seen by a client that is new."""

_source_ports = itertools.count(20000)


def dns(**spec: Any) -> Object:
    return service(
        "dns",
        "10.96.0.1",
        "fd00:10:96::1",
        ports=PORTS,
        type="LoadBalancer",
        externalIPs=["192.0.2.1"],
        status=balanced("198.51.100.1"),
        **spec,
    )


def slices(*pods: str) -> tuple[Object, ...]:
    return (
        endpoint_slice("dns", *pods, ports=POD_PORTS),
        endpoint_slice("dns", *pods, ports=POD_PORTS, family="IPv6"),
    )


@pytest.fixture(scope="module")
def node(
    mode: LabMode, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    with proxied(mode, network, tmp_path_factory.mktemp("udp") / "x", CLUSTER_CIDR) as made:
        yield made


class Client:
    """A client outside that keeps one source port for one target."""

    def __init__(self, node: Proxied, target: str) -> None:
        self._node = node
        self._target = target
        self._port = next(_source_ports)

    def meets(self) -> str:
        """Send once: who answered, `refused`, or `dropped`."""
        seen = self._node.once("ext", self._target, source_port=self._port, timeout=0.2)
        return next(iter(seen.reached), "refused" if seen.refused else "dropped")

    def must_meet(self, wanted: str) -> None:
        deadline = time.monotonic() + WITHIN
        while (met := self.meets()) != wanted:
            assert time.monotonic() < deadline, f"{self._target}: still {met}, not {wanted}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        (("a1",), lambda node: node.apply(*slices("a2")), "a2"),
        (("a1",), lambda node: node.apply(*slices()), "refused"),
        ((), lambda node: node.apply(*slices("a1")), "a1"),
        (("a1",), lambda node: node.apply(dns(externalTrafficPolicy="Local")), "a1"),
    ],
    ids=["one to another", "to none", "from none", "nothing of it changes"],
)
def test_a_flow_follows(
    node: Proxied,
    target: str,
    before: tuple[str, ...],
    change: Callable[[Proxied], None],
    after: str,
) -> None:
    node.apply(dns(), *slices(*before))
    fresh = next(_source_ports)
    if before:
        node.reaches("ext", target, *before, sport=fresh)
    else:
        node.is_refused("ext", target, sport=fresh)
    client = Client(node, target)
    assert client.meets() == (before[0] if before else "refused")
    change(node)
    newcomer = next(_source_ports)
    if after == "refused":
        node.is_refused("ext", target, sport=newcomer)
    else:
        node.reaches("ext", target, after, sport=newcomer)
    client.must_meet(after)


def test_a_flow_ends_with_its_service(node: Proxied) -> None:
    node.apply(dns(), *slices("a1"))
    clients = {target: Client(node, target) for target in TARGETS}
    for target, client in clients.items():
        node.reaches("ext", target, "a1", sport=next(_source_ports))
        assert client.meets() == "a1"
    node.delete("service", "dns")
    node.is_dropped("ext", TARGETS[0], sport=next(_source_ports))
    for target, client in clients.items():
        client.must_meet("refused" if "30053" in target else "dropped")


def test_a_flow_of_one_that_stays_is_left_alone(node: Proxied) -> None:
    """Going from two endpoints to one moves the clients of the one that left, and no others."""
    node.apply(dns(), *slices("a1", "a2"))
    node.reaches("ext", TARGETS[0], "a1", "a2", tries=24)
    clients = [Client(node, TARGETS[0]) for _ in range(16)]
    met = [client.meets() for client in clients]
    assert set(met) == {"a1", "a2"}
    assert [client.meets() for client in clients] == met
    node.apply(*slices("a1"))
    for client in clients:
        client.must_meet("a1")
