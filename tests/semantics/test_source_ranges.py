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


def with_ranges(*ranges: str, policy: str = "Cluster") -> Object:
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


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_ranges_apply_to_the_node_by_the_address_that_it_sends_from(
    node: Proxied, policy: str
) -> None:
    """The source of a packet that the node sends to its own address is that address."""
    here = node.network.namespace("na")
    here.ip([f"addr add {vip} dev lo" for vip in VIPS])
    try:
        node.apply(with_ranges("172.30.0.11/32", "fd30::11/128", policy=policy))
        for target in TARGETS:
            node.reaches("na", target, "a1")
            node.is_dropped("ext", target)
        node.apply(with_ranges("172.30.0.100/32", "fd30::100/128", policy=policy))
        for target in TARGETS:
            node.is_dropped("na", target)
            node.reaches("ext", target, "a1")
    finally:
        here.ip([f"addr del {vip} dev lo" for vip in VIPS])
