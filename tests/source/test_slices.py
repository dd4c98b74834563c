"""Decoding of EndpointSlices."""

from __future__ import annotations

from typing import Any

import pytest

from pyproxy.model.address import Port, Protocol, address_text
from pyproxy.model.objects import (
    EndpointSlice,
    Kind,
    ObjectName,
    SlicePort,
)
from pyproxy.source.decode import NotProxied

from .decoded import decoded, fields_of


def slice_obj(**given_fields: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
        }
        | given_fields.pop("metadata", {}),
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.5"]}],
    } | given_fields


def sliced(**given_fields: Any) -> EndpointSlice:
    value = decoded(Kind.ENDPOINT_SLICE, slice_obj(**given_fields)).value
    assert isinstance(value, EndpointSlice), value
    return value


@pytest.mark.parametrize(
    "given_fields",
    [
        {"metadata": {"labels": None}},
        {"metadata": {"labels": {}}},
        {"metadata": {"labels": {"kubernetes.io/service-name": ""}}},
        {"addressType": "FQDN"},
        {
            "metadata": {
                "labels": {
                    "kubernetes.io/service-name": "web",
                    "service.kubernetes.io/headless": "",
                }
            }
        },
    ],
)
def test_slices_that_are_not_proxied(given_fields: dict[str, Any]) -> None:
    assert isinstance(decoded(Kind.ENDPOINT_SLICE, slice_obj(**given_fields)).value, NotProxied)


def test_a_slice_from_a_real_api_server() -> None:
    value = sliced(
        metadata={
            "annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "2026-11-21T00:00:00.5Z"
            },
            "labels": {
                "kubernetes.io/service-name": "web",
                "endpointslice.kubernetes.io/managed-by": "mirroring-controller.k8s.io",
            },
        },
        endpoints=[
            {
                "addresses": ["10.244.1.5", "10.244.9.9"],
                "conditions": {"ready": False, "serving": True, "terminating": True},
                "nodeName": "node-a",
                "zone": "zone-1",
                "hints": {"forZones": [{"name": "zone-1"}], "forNodes": [{"name": "node-a"}]},
            }
        ],
    )
    (endpoint,) = value.endpoints
    assert (value.name, value.service) == (ObjectName("shop", "web-1"), ObjectName("shop", "web"))
    assert value.ports == (SlicePort("http", Protocol.TCP, Port(8080)),)
    assert value.triggered == 1795219200.5
    assert address_text(endpoint.address) == "10.244.1.5"
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == (False, True, True)
    assert (endpoint.node, endpoint.zone) == ("node-a", "zone-1")
    assert (endpoint.hint_zones, endpoint.hint_nodes) == (("zone-1",), ("node-a",))


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False}, (False, True, False)),
        ({"ready": False, "serving": False, "terminating": True}, (False, False, True)),
    ],
)
def test_conditions(conditions: Any, expected: tuple[bool, bool, bool]) -> None:
    (endpoint,) = sliced(
        endpoints=[{"addresses": ["10.244.1.5"], "conditions": conditions}]
    ).endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == expected


@pytest.mark.parametrize(
    ("family", "addresses", "problem"),
    [
        ("IPv4", ["10.0.0.1"], ""),
        ("IPv6", ["fd00::1"], ""),
        ("IPv4", ["240.0.0.1"], ""),
        ("IPv4", [], "empty"),
        ("IPv4", None, "empty"),
        ("IPv4", ["x"], "not an IP"),
        ("IPv4", ["fd00::1"], "incorrect IP version"),
        ("IPv6", ["10.0.0.1"], "incorrect IP version"),
        ("IPv4", ["127.0.0.1"], "loopback"),
        ("IPv4", ["0.0.0.0"], "unspecified"),
        ("IPv4", ["224.0.0.1"], "multicast"),
        ("IPv4", ["255.255.255.255"], "broadcast"),
        ("IPv6", ["::1"], "loopback"),
        ("IPv6", ["::"], "unspecified"),
        ("IPv6", ["ff02::1"], "multicast"),
        ("IPv6", ["fe80::1"], "link-local"),
        ("IPv6", ["fe80::1%eth0"], "not an IP"),
    ],
)
def test_endpoint_addresses(family: str, addresses: Any, problem: str) -> None:
    good = {"addresses": ["10.9.9.9" if family == "IPv4" else "fd00::99"]}
    value = sliced(addressType=family, endpoints=[{"addresses": addresses}, good])
    if problem:
        assert len(value.endpoints) == 1
        assert value.problems[0].field.startswith("endpoints[0].addresses")
        assert problem in value.problems[0].message
    else:
        assert len(value.endpoints) == 2
        assert value.problems == ()


@pytest.mark.parametrize(
    ("ports", "expected", "problems"),
    [
        (None, [], []),
        ([{"port": None, "name": "a"}], [], []),
        ([{"port": 80, "name": None}], [("", 6, 80)], []),
        ([{"port": 0}, {"port": 80}], [("", 6, 80)], ["ports[0].port"]),
        ([{"port": 80, "protocol": "UDP"}], [("", 17, 80)], []),
        ([{"port": 80, "protocol": "QUIC"}], [], ["ports[0].protocol"]),
    ],
)
def test_slice_ports(ports: Any, expected: Any, problems: list[str]) -> None:
    value = sliced(ports=ports)
    assert [(p.name, p.protocol, p.port) for p in value.ports] == expected
    assert fields_of(value.problems) == problems


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-11-21T00:00:00", "0001-01-01T00:00:00+23:59x", None]
)
def test_an_invalid_trigger_time_is_unknown(text: Any) -> None:
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": text}
    assert sliced(metadata={"annotations": annotations}).triggered == 0


def test_an_unknown_address_type_is_a_problem() -> None:
    value = sliced(addressType="IPX")
    assert value.endpoints == ()
    assert fields_of(value.problems) == ["addressType"]


def test_names_and_equal_tuples_are_shared() -> None:
    endpoint = {
        "addresses": ["10.0.0.1"],
        "nodeName": "node-with-a-name",
        "zone": "zone with a name",
        "hints": {"forZones": [{"name": "zone with a name"}]},
    }
    one, two = (sliced(endpoints=[endpoint]) for _ in range(2))
    assert one.ports is two.ports
    assert one.endpoints[0].node is two.endpoints[0].node
    assert one.endpoints[0].zone is two.endpoints[0].zone
    assert one.endpoints[0].hint_zones is two.endpoints[0].hint_zones
