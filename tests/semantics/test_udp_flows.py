"""UDP clients that keep their port, and send on, follow their Service after the commit.

That they follow it at all is shown by the conformance cases 05-conntrack.yaml and 14-flows.yaml.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from tests.waiting import PATIENCE

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

    def outcome(self) -> str:
        """Send once, and return the pod that responds, `refused`, or `dropped`."""
        seen = self._node.once("ext", self._target, source_port=self._port, timeout=0.2)
        return next(iter(seen.reached), "refused" if seen.refused else "dropped")

    def await_outcome(self, wanted: str) -> None:
        # Each packet renews an old flow's timeout, so that no old flow ends by itself.
        deadline = time.monotonic() + PATIENCE
        while (seen := self.outcome()) != wanted:
            assert time.monotonic() < deadline, f"{self._target}: still {seen}, not {wanted}"


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        (("a1",), lambda node: node.apply(*slices("a2")), "a2"),
        (("a1",), lambda node: node.apply(*slices()), "refused"),
        ((), lambda node: node.apply(*slices("a1")), "a1"),
        (("a1",), lambda node: node.apply(dns(externalTrafficPolicy="Local")), "a1"),
    ],
    ids=["one to another", "to none", "from none", "same endpoint"],
)
def test_a_flow_follows_its_service_although_its_client_sends_on(
    node: Proxied, before: tuple[str, ...], change: Callable[[Proxied], None], after: str
) -> None:
    node.apply(dns(), *slices(*before))
    for target in TARGETS:
        if before:
            node.reaches("ext", target, *before, sport=next(_source_ports))
        else:
            node.is_refused("ext", target, sport=next(_source_ports))
    clients = [Client(node, target) for target in TARGETS]
    for client in clients:
        client.await_outcome(before[0] if before else "refused")
    # It returns once the agent has committed the change.
    change(node)
    for client in clients:
        client.await_outcome(after)
