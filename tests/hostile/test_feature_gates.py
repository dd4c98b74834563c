"""The feature gate that forbids external IPs, as a flag and in the file, in every mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from pyproxy.config.feature_gates import states
from pyproxy.model.objects import ObjectName
from tests.agent.objects import Stage
from tests.builders import ip, web
from tests.config.parsing import parse
from tests.config.test_file import HEAD
from tests.exposition import scraped
from tests.semantics.proxied import balanced, endpoint_slice, proxied, service

FORBIDDEN = "not proxied, because the feature gate AllowServiceExternalIPs is false"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.mark.packets
def test_no_external_ip_is_proxied_without_the_gate(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    objects = (
        service(
            "web",
            "10.96.0.1",
            type="LoadBalancer",
            externalIPs=["192.0.2.1", "192.0.2.2", "192.0.2.3"],
            status=balanced("192.0.2.3"),
        ),
        endpoint_slice("web", "a1"),
    )
    flag = "--feature-gates=AllowServiceExternalIPs=false"
    with proxied(mode, network, tmp_path / "x", flag, objects=objects) as node:
        node.reaches("a2", "10.96.0.1:80", "a1")
        # A controller wrote this one, so it is not a tenant's choice.
        node.reaches("a2", "192.0.2.3:80", "a1")
        assert "192.0.2.1" not in node.listing()
        assert "192.0.2.2" not in node.listing()
        assert node.once("a2", "192.0.2.1:80", tries=1, timeout=0.2).reached == {}
        assert node.agent.log.read_text().count(FORBIDDEN) == 1
        found = network.namespace("na").call(scraped)
        gate = "AllowServiceExternalIPs"
        assert found[f'kubernetes_feature_enabled{{name="{gate}",stage="DEPRECATED"}}'] == 0


def test_each_service_says_it_once() -> None:
    stage = Stage(external_ips=False)
    stage.begin(web(external_ips=[f"192.0.2.{n}" for n in range(1, 100)]))
    stage.handle_event(web(external_ips=[f"192.0.2.{n}" for n in range(1, 90)]))
    stage.settle()
    assert [str(each) for each in stage.reported] == [
        f"Service shop/web: spec.externalIPs: {FORBIDDEN}"
    ]
    routing = stage.recorder.commits[-1].routings[ObjectName("shop", "web")]
    assert routing is not None
    addresses = {each.address for port in routing.ports for each in port.frontends}
    assert addresses == {ip("10.96.0.1")}


@pytest.mark.parametrize(
    ("gates", "allowed", "remarks"),
    [
        ({}, True, ()),
        ({"AllowServiceExternalIPs": True}, True, ()),
        ({"AllowServiceExternalIPs": False}, False, ()),
        ({"NFTablesProxyMode": True, "LoadBalancerIPMode": True}, True, ()),
        (
            {"LoadBalancerIPMode": False},
            True,
            ("feature gates without effect: LoadBalancerIPMode=false",),
        ),
        (
            {"TopologyAwareHints": False, "AllAlpha": True},
            True,
            ("feature gates without effect: AllAlpha=true, TopologyAwareHints=false",),
        ),
        (
            {"AllowServiceExternalIP": False, "AllowServiceExternalIPs": False},
            False,
            ("unknown feature gates, without effect: AllowServiceExternalIP=false",),
        ),
    ],
)
def test_gates_are_honoured_or_named(
    tmp_path: Path, gates: dict[str, bool], allowed: bool, remarks: tuple[str, ...]
) -> None:
    file = tmp_path / "config.yaml"
    lines = "".join(f"\n  {name}: {str(value).lower()}" for name, value in gates.items())
    file.write_text(f"{HEAD}mode: nftables\nfeatureGates: {lines or '{}'}\n")
    flags = [f"--feature-gates={name}={str(value).lower()}" for name, value in gates.items()]
    for settings in (parse(*flags), parse(f"--config={file}")):
        assert settings.external_ips is allowed
        assert settings.remarks == remarks
        assert settings.configuration.feature_gates == gates


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ("", {}),
        ("AllowServiceExternalIPs=false", {"AllowServiceExternalIPs": ("DEPRECATED", False)}),
        ("AllAlpha=true", {"AllAlpha": ("ALPHA", True)}),
        ("AllBeta=true", {"AllBeta": ("BETA", True)}),
        # Both have no effect.
        ("NFTablesProxyMode=false,LoadBalancerIPMode=false", {}),
    ],
)
def test_the_state_of_each_gate_of_kubernetes_1_36_is_known(
    given: str, changed: dict[str, tuple[str, bool]]
) -> None:
    gates = parse(*([f"--feature-gates={given}"] if given else [])).configuration.feature_gates
    found = {each.name: (each.stage, each.enabled) for each in states(gates.items())}
    assert found == {
        "AllAlpha": ("ALPHA", False),
        "AllBeta": ("BETA", False),
        "AllowServiceExternalIPs": ("DEPRECATED", True),
        "NFTablesProxyMode": ("", True),
        "PreferSameTrafficDistribution": ("", True),
        "ServiceTrafficDistribution": ("", True),
        "TopologyAwareHints": ("", True),
        **changed,
    }


def test_the_last_of_several_values_counts() -> None:
    gates = "--feature-gates=AllowServiceExternalIPs="
    assert parse(f"{gates}true", f"{gates}false").external_ips is False
    assert parse(f"{gates}false,AllowServiceExternalIPs=true").external_ips is True
