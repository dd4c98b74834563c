"""Health-check node ports, asked over the network as load balancers ask."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from tests.waiting import PATIENCE

from .proxied import (
    Object,
    Proxied,
    balanced,
    proxied,
    service,
)

pytestmark = pytest.mark.packets

PORT = 32000
V4, V6, GATEWAY = "172.30.0.11", "fd30::11", "10.244.1.1"
Answer = tuple[int, int]
"""HTTP's status and the local endpoints; zeros where the port is closed."""

CLOSED: Answer = (0, 0)


def web(port: int = PORT) -> Object:
    return service(
        "web",
        "10.96.0.1",
        "fd00:10:96::1",
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=port,
        status=balanced("198.51.100.1"),
    )


def ask(node: Proxied, address: str, port: int) -> Answer:
    def get() -> Answer:
        connection = http.client.HTTPConnection(address, port, timeout=PATIENCE)
        try:
            connection.request("GET", "/healthz")
            reply = connection.getresponse()
            said = json.loads(reply.read())
            weight = reply.headers["X-Load-Balancing-Endpoint-Weight"]
            assert weight == str(said["localEndpoints"])
            return reply.status, said["localEndpoints"]
        except ConnectionRefusedError:
            return CLOSED
        finally:
            connection.close()

    return node.network.namespace("ext").call(get)


def reports(node: Proxied, address: str, wanted: Answer, port: int = PORT) -> None:
    deadline = time.monotonic() + PATIENCE
    while (seen := ask(node, address, port)) != wanted:
        assert time.monotonic() < deadline, f"{address} says {seen}, not {wanted}"
        time.sleep(0.02)


@pytest.fixture
def node(mode: LabMode, network: Network, tmp_path: Path) -> Iterator[Proxied]:
    primary = "--nodeport-addresses=primary"
    with proxied(mode, network, tmp_path / "x", primary, objects=[web()]) as made:
        yield made


def test_a_health_check_port_is_on_node_port_addresses_and_follows_its_service(
    node: Proxied,
) -> None:
    reports(node, V4, (503, 0))
    assert ask(node, GATEWAY, PORT) == CLOSED
    node.apply(web(PORT + 1))
    reports(node, V4, (503, 0), PORT + 1)
    reports(node, V4, CLOSED)
    node.delete("service", "web")
    reports(node, V4, CLOSED, PORT + 1)
    reports(node, V6, CLOSED, PORT + 1)


def test_a_health_check_port_is_on_a_load_balancer_address_that_is_local(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    """Some load balancers send packets, and their checks too, to their own address."""
    here, client = network.namespace("na"), network.namespace("ext")
    kinds = {"198.51.100.1": V4, "2001:db8:99::1": V6}
    lb = web()
    lb["status"] = balanced(*kinds)
    here.ip([f"route add local {address} dev eth0" for address in kinds])
    client.ip([f"route replace {address} via {gateway}" for address, gateway in kinds.items()])
    try:
        everywhere = "--nodeport-addresses=all"
        with proxied(mode, network, tmp_path / "x", everywhere, objects=[lb]) as node:
            for address in kinds:
                reports(node, address, (503, 0))
    finally:
        here.ip([f"route del local {address} dev eth0" for address in kinds])
        client.ip([f"route del {address} via {gateway}" for address, gateway in kinds.items()])
