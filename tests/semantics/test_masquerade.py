"""The source address that a pod sees, by the flags that determine masquerading."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network
from pyproxy_lab.topology import TWO_NODES

from .proxied import Proxied, endpoint_slice, node, proxied, service

pytestmark = pytest.mark.packets

A2, OUTSIDE = "10.244.1.12", "172.30.0.100"
A2_6, OUTSIDE_6 = "fd10:1::12", "fd30::100"
GATEWAY, GATEWAY_6 = "10.244.1.1", "fd10:1::1"  # what the node is called among its own pods
NETWORKS = list(TWO_NODES.site("na").pod_networks)
WEB = (
    service("web", "10.96.0.1", "fd00:10:96::1"),
    endpoint_slice("web", "a1"),
    endpoint_slice("web", "a1", family="IPv6"),
)
V4, V6 = "10.96.0.1:80", "[fd00:10:96::1]:80"

PODS_KEPT = {"a2": (A2, A2_6), "ext": (GATEWAY, GATEWAY_6)}
ALL_KEPT = {"a2": (A2, A2_6), "ext": (OUTSIDE, OUTSIDE_6)}
NONE_KEPT = dict.fromkeys(("a2", "ext"), (GATEWAY, GATEWAY_6))
ONLY_IPV4_KNOWN = {"a2": (A2, A2_6), "ext": (GATEWAY, OUTSIDE_6)}

CLUSTER_CIDR = ("--cluster-cidr=10.244.0.0/16,fd10::/16",)
BRIDGE = ("--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0")
PREFIX = ("--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cb")
OTHER_PREFIX = ("--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=eth")
NODE_CIDR = ("--detect-local-mode=NodeCIDR",)


@pytest.mark.parametrize(
    ("flags", "seen"),
    [
        ((), ALL_KEPT),
        (CLUSTER_CIDR, PODS_KEPT),
        (("--cluster-cidr=10.244.0.0/16",), ONLY_IPV4_KNOWN),
        ((*CLUSTER_CIDR, "--masquerade-all"), NONE_KEPT),
        (("--masquerade-all",), NONE_KEPT),
        ((*CLUSTER_CIDR, "--iptables-masquerade-bit=20"), PODS_KEPT),
        ((*CLUSTER_CIDR, "--iptables-masquerade-bit=31"), PODS_KEPT),
        (BRIDGE, PODS_KEPT),
        (PREFIX, PODS_KEPT),
        (OTHER_PREFIX, {"a2": (GATEWAY, GATEWAY_6), "ext": (OUTSIDE, OUTSIDE_6)}),
        (NODE_CIDR, PODS_KEPT),
    ],
    ids=" ".join,
)
def test_the_source_that_a_pod_sees_behind_a_cluster_ip(
    mode: LabMode,
    network: Network,
    tmp_path: Path,
    flags: tuple[str, ...],
    seen: dict[str, tuple[str, str]],
) -> None:
    with proxied(mode, network, tmp_path / "x", *flags, objects=WEB) as here:
        assert_sources(here, seen)
        # A pod that reaches itself is masqueraded with all flags, or it would bypass conntrack.
        here.reaches("a1", V4, "a1", source=GATEWAY)
        here.reaches("a1", V6, "a1", source=GATEWAY_6)


def assert_sources(here: Proxied, seen: dict[str, tuple[str, str]]) -> None:
    for who, sources in seen.items():
        for to, source in zip((V4, V6), sources, strict=True):
            here.reaches(who, to, "a1", source=source)


def test_the_nodes_pod_networks_may_come_later_and_go(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    with proxied(mode, network, tmp_path / "x", *NODE_CIDR, objects=(*WEB, node())) as here:
        assert_sources(here, ALL_KEPT)
        here.apply(node(podCIDR=NETWORKS[0], podCIDRs=NETWORKS[:1]))
        assert_sources(here, ONLY_IPV4_KNOWN)
        here.apply(node(podCIDR=NETWORKS[0], podCIDRs=NETWORKS))
        assert_sources(here, PODS_KEPT)
        here.apply(node())
        assert_sources(here, ALL_KEPT)


def test_the_mark_is_the_bit_that_was_asked_for(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    """Other programs mark packets too: the bit that says "masquerade" must be free to choose."""
    others = "table inet other {{ chain c {{ type filter hook prerouting priority -150; {}; }}; }}"
    site = network.namespace("na")
    try:
        with proxied(
            mode,
            network,
            tmp_path / "x",
            *CLUSTER_CIDR,
            "--iptables-masquerade-bit=20",
            objects=WEB,
        ) as here:
            site.run(["nft", others.format("meta mark set 0x4000")])
            assert_sources(here, PODS_KEPT)
            site.run(["nft", "flush table inet other"])
            site.run(["nft", others.format("meta mark set 0x100000")])
            assert_sources(here, NONE_KEPT)
    finally:
        site.run(["nft", "delete table inet other"], check=False)
