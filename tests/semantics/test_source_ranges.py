"""Source ranges of a load balancer where the node has the load balancer's address itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from .proxied import Object, Proxied, balanced, endpoint_slice, proxied, service

pytestmark = pytest.mark.packets

VIPS = ("198.51.100.1", "2001:db8::2")
TARGETS = tuple(f"[{vip}]:80" if ":" in vip else f"{vip}:80" for vip in VIPS)
SLICES = (endpoint_slice("web", "a1"), endpoint_slice("web", "a1", family="IPv6"))


def guarded(*ranges: str, policy: str = "Cluster") -> Object:
    return service(
        "web",
        "10.96.0.1",
        "fd00:10:96::1",
        type="LoadBalancer",
        loadBalancerSourceRanges=list(ranges),
        status=balanced(*VIPS),
        externalTrafficPolicy=policy,
    )


@pytest.fixture(scope="module")
def node(
    mode: LabMode, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("ranges") / "x"
    flags = "--cluster-cidr=10.244.0.0/16,fd10::/16"
    with proxied(mode, network, folder, flags, objects=SLICES) as made:
        yield made


@pytest.mark.parametrize(
    ("ranges", "let_in", "kept_out"),
    [
        (["172.30.0.100/32", "fd30::100/128"], ["ext"], ["a2", "na"]),
        ([" 172.30.0.0/24 ", "fd30::/64"], ["ext", "na"], ["a2"]),
        (["10.244.0.0/16", "fd10::/16"], ["a2"], ["ext", "na"]),
        (["0.0.0.0/0", "::/0"], ["ext", "na", "a2"], []),
        (["nonsense"], [], ["ext", "na", "a2"]),
        ([], ["ext", "na", "a2"], []),
    ],
)
def test_who_gets_in(
    node: Proxied, ranges: list[str], let_in: list[str], kept_out: list[str]
) -> None:
    node.apply(guarded(*ranges))
    for target in TARGETS:
        for who in let_in:
            node.reaches(who, target, "a1")
        for who in kept_out:
            node.is_dropped(who, target)
    for who in ("ext", "na", "a2"):
        node.reaches(who, "10.96.0.1:80", "a1")


def test_ranges_of_one_family_let_nobody_of_the_other_in(node: Proxied) -> None:
    node.apply(guarded("172.30.0.0/24"))
    node.reaches("ext", TARGETS[0], "a1")
    node.is_dropped("ext", TARGETS[1])


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_the_node_gets_in_where_the_address_is_its_own_too(node: Proxied, policy: str) -> None:
    """The source of a packet that the node sends to its own address is that address."""
    here = node.network.namespace("na")
    here.ip([f"addr add {vip} dev lo" for vip in VIPS])
    try:
        node.apply(guarded("172.30.0.11/32", "fd30::11/128", policy=policy))
        for target in TARGETS:
            node.reaches("na", target, "a1")
            node.is_dropped("ext", target)
        node.apply(guarded("172.30.0.100/32", "fd30::100/128", policy=policy))
        for target in TARGETS:
            node.is_dropped("na", target)
            node.reaches("ext", target, "a1")
    finally:
        here.ip([f"addr del {vip} dev lo" for vip in VIPS])


def test_addresses_of_a_family_that_the_service_has_not_are_left_out(node: Proxied) -> None:
    node.apply(
        service(
            "single",
            "10.96.0.2",
            type="LoadBalancer",
            externalIPs=["192.0.2.9", "2001:db8::9"],
            status=balanced("198.51.100.9", "2001:db8::a"),
        ),
        endpoint_slice("single", "a1"),
        endpoint_slice("single", "a1", family="IPv6"),
    )
    for good in ("10.96.0.2", "192.0.2.9", "198.51.100.9"):
        node.reaches("ext", f"{good}:80", "a1")
    for bad in ("2001:db8::9", "2001:db8::a"):
        node.is_dropped("ext", f"[{bad}]:80")
        node.says(f"{bad} has incorrect IP version: this Service is IPv4; left out")
