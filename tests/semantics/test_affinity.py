"""Session affinity, seen by its clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from .proxied import Object, Proxied, balanced, endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

PODS = {"a1": "10.244.1.11", "a2": "10.244.1.12"}
PORTS = 16
"""So many that all of them, chosen at random, hardly ever have the same endpoint."""

TRIES = 4
ALL = ("a1", "a2", "b1", "b2")
MANY = [{"name": f"p{n}", "port": 80 + n, "nodePort": 30100 + n} for n in range(PORTS)]
MANY_AT_PODS = [{"name": f"p{n}", "port": 8080} for n in range(PORTS)]
NODES = ("172.30.0.11", "fd30::11")
CLUSTER_IPS = ("10.96.0.1", "fd00:10:96::1")
EXTERNAL_IPS = ("192.0.2.1", "2001:db8::1")
BALANCED_IPS = ("198.51.100.1", "2001:db8::2")


def with_affinity(timeout: int = 600, **spec: Any) -> Object:
    return service(
        "web",
        *CLUSTER_IPS,
        ports=MANY,
        type="LoadBalancer",
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": timeout}},
        externalIPs=list(EXTERNAL_IPS),
        status=balanced(*BALANCED_IPS),
        **spec,
    )


def slices(*pods: str) -> tuple[Object, Object]:
    return (
        endpoint_slice("web", *pods, ports=MANY_AT_PODS),
        endpoint_slice("web", *pods, ports=MANY_AT_PODS, family="IPv6"),
    )


@pytest.fixture(scope="module")
def node(
    mode: LabMode, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("affinity") / "x"
    with proxied(mode, network, folder, "--cluster-cidr=10.244.0.0/16,fd10::/16") as made:
        yield made


@pytest.fixture(autouse=True)
def _clear(node: Proxied) -> None:
    """Remove the affinities of earlier tests."""
    node.apply(service("web", *CLUSTER_IPS, ports=MANY[:1]), *slices())
    node.is_refused("a2", "10.96.0.1:80")


def to(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@pytest.mark.parametrize("addresses", [CLUSTER_IPS, EXTERNAL_IPS, BALANCED_IPS, NODES])
@pytest.mark.parametrize("who", ["ext", "na", "a2"])
def test_each_port_of_each_address_has_its_own_affinity(
    node: Proxied, who: str, addresses: tuple[str, str]
) -> None:
    node.apply(with_affinity(), *slices(*ALL))
    first = 30100 if addresses is NODES else 80
    for address in addresses:
        node.reaches("a1", to(address, first), node.single_pod("a1", to(address, first)))
        chosen = [node.single_pod(who, to(address, first + n), TRIES) for n in range(PORTS)]
        assert len(set(chosen)) > 1
        again = [node.single_pod(who, to(address, first + n), TRIES) for n in range(PORTS)]
        assert again == chosen


def test_each_client_has_its_own_endpoint(node: Proxied) -> None:
    node.apply(with_affinity(), *slices(*ALL))
    targets = [f"10.96.0.1:{80 + n}" for n in range(PORTS)]
    clients = ("a1", "a2", "ext", "na")
    chosen = {
        who: tuple(node.single_pod(who, target, TRIES) for target in targets) for who in clients
    }
    assert len(set(chosen.values())) == len(clients)


def test_each_protocol_has_its_own_affinity(node: Proxied) -> None:
    both = [each | {"protocol": "UDP", "name": f"u{each['port']}"} for each in MANY]
    at_pods = [{"name": each["name"], "port": 8080, "protocol": "UDP"} for each in both]
    web = with_affinity()
    web["spec"]["ports"] += both
    node.apply(
        web,
        endpoint_slice("web", *ALL, ports=[*MANY_AT_PODS, *at_pods]),
        endpoint_slice("web", *ALL, ports=[*MANY_AT_PODS, *at_pods], family="IPv6"),
    )
    for who, address in (("a2", CLUSTER_IPS[0]), ("ext", BALANCED_IPS[1])):
        targets = [to(address, 80 + n) for n in range(PORTS)]
        by_udp = [node.single_pod(who, f"{target}/udp", TRIES) for target in targets]
        by_tcp = [node.single_pod(who, target, TRIES) for target in targets]
        assert by_udp != by_tcp
        assert [node.single_pod(who, f"{target}/udp", TRIES) for target in targets] == by_udp
