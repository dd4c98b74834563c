"""Session affinity, seen by its clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from .proxied import Object, Proxied, balanced, endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

PODS = {"a1": "10.244.1.11", "a2": "10.244.1.12"}
ALL = ("a1", "a2", "b1", "b2")
MANY = [{"name": f"p{n}", "port": 80 + n, "nodePort": 30100 + n} for n in range(8)]
MANY_AT_PODS = [{"name": f"p{n}", "port": 8080} for n in range(8)]
NODES = ("172.30.0.11", "fd30::11")
CLUSTER_IPS = ("10.96.0.1", "fd00:10:96::1")
EXTERNAL_IPS = ("192.0.2.1", "2001:db8::1")
BALANCED_IPS = ("198.51.100.1", "2001:db8::2")


def sticky(timeout: int = 60, **spec: Any) -> Object:
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
def _afresh(node: Proxied) -> None:
    """Remove the affinities of earlier tests."""
    node.apply(service("web", *CLUSTER_IPS, ports=MANY[:1]), *slices())
    node.is_refused("a2", "10.96.0.1:80")


def to(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@pytest.mark.parametrize("addresses", [CLUSTER_IPS, EXTERNAL_IPS, BALANCED_IPS, NODES])
@pytest.mark.parametrize("who", ["ext", "na", "a2"])
def test_each_port_of_each_address_has_its_own_memory(
    node: Proxied, who: str, addresses: tuple[str, str]
) -> None:
    node.apply(sticky(), *slices(*ALL))
    first = 30100 if addresses is NODES else 80
    for address in addresses:
        node.reaches("a1", to(address, first), node.sticks("a1", to(address, first)))
        chosen = [node.sticks(who, to(address, first + n)) for n in range(8)]
        assert len(set(chosen)) > 1
        again = [node.sticks(who, to(address, first + n)) for n in range(8)]
        assert again == chosen


def test_each_client_has_its_own_endpoint(node: Proxied) -> None:
    node.apply(sticky(), *slices(*ALL))
    targets = [f"10.96.0.1:{80 + n}" for n in range(8)]
    clients = ("a1", "a2", "ext", "na")
    chosen = {who: tuple(node.sticks(who, target) for target in targets) for who in clients}
    assert len(set(chosen.values())) == len(clients)


def test_protocols_are_told_apart(node: Proxied) -> None:
    both = [each | {"protocol": "UDP", "name": f"u{each['port']}"} for each in MANY]
    at_pods = [{"name": each["name"], "port": 8080, "protocol": "UDP"} for each in both]
    web = sticky()
    web["spec"]["ports"] += both
    node.apply(
        web,
        endpoint_slice("web", *ALL, ports=[*MANY_AT_PODS, *at_pods]),
        endpoint_slice("web", *ALL, ports=[*MANY_AT_PODS, *at_pods], family="IPv6"),
    )
    for who, address in (("a2", CLUSTER_IPS[0]), ("ext", BALANCED_IPS[1])):
        targets = [to(address, 80 + n) for n in range(8)]
        by_udp = [node.sticks(who, f"{target}/udp") for target in targets]
        by_tcp = [node.sticks(who, target) for target in targets]
        assert by_udp != by_tcp
        assert [node.sticks(who, f"{target}/udp") for target in targets] == by_udp


def test_use_refreshes_and_time_ends_it(node: Proxied) -> None:
    node.apply(sticky(timeout=1), *slices(*ALL))
    first = node.sticks("a2", "10.96.0.1:80")
    for _ in range(8):
        time.sleep(0.4)
        assert node.once("a2", "10.96.0.1:80").reached == {first: 1}
    later: list[str] = []
    for _ in range(12):
        time.sleep(1.1)
        later += node.once("a2", "10.96.0.1:80").reached
        if set(later) != {first}:
            return
    pytest.fail(f"the client met {later} after its time was over, and {first} before")


@pytest.mark.parametrize(
    ("who", "address", "policy"),
    [
        ("a2", CLUSTER_IPS[0], {}),
        ("a2", CLUSTER_IPS[1], {}),
        ("a2", CLUSTER_IPS[0], {"internalTrafficPolicy": "Local"}),
        ("ext", BALANCED_IPS[0], {"externalTrafficPolicy": "Local"}),
        ("ext", EXTERNAL_IPS[1], {"externalTrafficPolicy": "Local"}),
        ("na", BALANCED_IPS[0], {"externalTrafficPolicy": "Local"}),
    ],
)
def test_it_ends_with_its_endpoint_and_outlives_new_ones(
    node: Proxied, who: str, address: str, policy: Object
) -> None:
    node.apply(sticky(**policy), *slices("a1", "a2"))
    target = to(address, 80)
    had = node.sticks(who, target)
    other = "a2" if had == "a1" else "a1"
    node.apply(*slices(other))
    node.reaches(who, target, other)
    node.apply(*slices(other, had, "b1"))
    node.holds(PODS[had])
    for _ in range(10):
        assert node.once(who, target, tries=3).reached == {other: 3}


@pytest.mark.parametrize(
    ("who", "address", "policy"),
    [
        ("a2", CLUSTER_IPS[0], "internalTrafficPolicy"),
        ("a2", CLUSTER_IPS[1], "internalTrafficPolicy"),
        ("ext", BALANCED_IPS[0], "externalTrafficPolicy"),
        ("ext", NODES[1], "externalTrafficPolicy"),
    ],
)
def test_it_ends_when_the_policy_changes(
    node: Proxied, who: str, address: str, policy: str
) -> None:
    node.apply(sticky(), *slices(*ALL))
    first = 30100 if address in NODES else 80
    targets = [to(address, first + n) for n in range(8)]
    had = {node.sticks(who, target) for target in targets}
    assert had & {"b1", "b2"}
    local: Object = {policy: "Local"}
    node.apply(sticky(**local))
    met = {node.sticks(who, target, tries=4) for target in targets}
    deadline = time.monotonic() + 10
    while not met <= {"a1", "a2"}:
        assert time.monotonic() < deadline, f"{met} are met under the policy Local"
        met = {node.sticks(who, target, tries=4) for target in targets}


def test_without_it_nobody_is_remembered(node: Proxied) -> None:
    node.apply(sticky(), *slices(*ALL))
    node.sticks("a2", "10.96.0.1:80")
    node.apply(service("web", *CLUSTER_IPS, ports=MANY), *slices(*ALL))
    node.reaches("a2", "10.96.0.1:80", *ALL, tries=48)
