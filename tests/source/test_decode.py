"""Decoding of Nodes, and of any JSON to a value or a Problem."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.errors import Problem
from pyproxy.model.address import Network, parse_network
from pyproxy.model.objects import (
    EndpointSlice,
    Kind,
    Node,
    ObjectName,
    Service,
)
from pyproxy.source.decode import NotProxied, decode_object

from .decoded import decoded, fields_of, texts


@pytest.mark.parametrize(
    ("kind", "data", "name", "version", "field"),
    [
        (
            Kind.SERVICE,
            {"metadata": {"name": "a", "namespace": "b", "resourceVersion": "9"}, "spec": "x"},
            ObjectName("b", "a"),
            "9",
            "spec",
        ),
        (
            Kind.SERVICE,
            {"metadata": {"name": "a", "namespace": "b"}, "spec": {"ports": [{"port": "80"}]}},
            ObjectName("b", "a"),
            "",
            "spec.ports[0].port",
        ),
        (Kind.SERVICE, {"metadata": {"name": "a"}}, ObjectName("", "a"), "", "metadata.namespace"),
        (Kind.SERVICE, {"metadata": {}}, None, "", "metadata.name"),
        (Kind.SERVICE, {}, None, "", "metadata"),
        (Kind.SERVICE, [], None, "", "metadata"),
        (Kind.NODE, {"metadata": {"name": 1}}, None, "", "metadata.name"),
        (
            Kind.NODE,
            {"metadata": {"name": "a", "labels": {"topology.kubernetes.io/zone": 1}}},
            ObjectName("", "a"),
            "",
            "metadata.labels.topology.kubernetes.io/zone",
        ),
    ],
)
def test_objects_that_cannot_be_decoded_keep_their_name(
    kind: Kind, data: Any, name: ObjectName | None, version: str, field: str
) -> None:
    result = decoded(kind, data)
    assert isinstance(result.value, Problem)
    assert (result.name, result.version, result.value.field) == (name, version, field)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_KEYS = sorted(
    set(
        re.findall(
            r'"([\w./-]+)"|^    (\w+):',
            (Path(__file__).parents[2] / "pyproxy/source/wire.py").read_text(),
            re.MULTILINE,
        )
    )
)
known_keys = st.sampled_from(
    [quoted or re.sub(r"_(\w)", lambda m: m[1].upper(), plain) for quoted, plain in _KEYS]
)
likely_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 70000)
    | st.text(max_size=8)
    | st.sampled_from(
        ["IPv4", "IPv6", "10.0.0.1", "fd00::1", "10.0.0.0/8", "LoadBalancer", "Local", "ClientIP"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(known_keys, inner, max_size=6),
    max_leaves=30,
)
likely_objects = st.fixed_dictionaries(
    {
        "metadata": st.just({"name": "a", "namespace": "b"})
        | st.just({"name": "a", "namespace": "b", "labels": {"kubernetes.io/service-name": "svc"}})
        | likely_values
    },
    optional={
        key: st.dictionaries(known_keys, likely_values, max_size=8) | likely_values
        for key in ("spec", "status")
    }
    | {"addressType": st.sampled_from(["IPv4", "IPv6"]), "ports": likely_values}
    | {"endpoints": likely_values},
)


@given(st.sampled_from(Kind), json_values | likely_objects)
def test_any_json_becomes_a_value_or_a_problem(kind: Kind, obj: Any) -> None:
    value = decoded(kind, obj).value
    assert isinstance(value, Service | EndpointSlice | Node | NotProxied | Problem)


@given(st.sampled_from(Kind), st.binary())
def test_any_bytes_become_a_value_or_a_problem(kind: Kind, data: bytes) -> None:
    assert isinstance(decode_object(kind, data).value, Problem)


def node(spec: Any = None, status: Any = None, **metadata: Any) -> Node:
    obj = {"metadata": {"name": "node-a"} | metadata, "spec": spec, "status": status}
    value = decoded(Kind.NODE, obj)
    assert value.name == ObjectName("", "node-a")
    assert isinstance(value.value, Node), value
    return value.value


def test_a_node_from_a_real_api_server() -> None:
    value = node(
        {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd10:1::/64"]},
        {
            "addresses": [
                {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "Hostname", "address": "node-a"},
                {"type": "InternalIP", "address": "172.30.0.11"},
                {"type": "InternalIP", "address": "fd30::11"},
                {"type": "InternalIP", "address": "nonsense"},
            ]
        },
        labels={"topology.kubernetes.io/zone": "zone-1"},
        uid="u",
    )
    assert texts(value.addresses) == ["172.30.0.11", "fd30::11", "192.0.2.1"]
    assert value.pod_networks == (parse_network("10.244.1.0/24"), parse_network("fd10:1::/64"))
    assert (value.zone, value.eligible, value.uid) == ("zone-1", True, "u")
    assert fields_of(value.problems) == ["status.addresses[4].address"]


@pytest.mark.parametrize(
    ("spec", "metadata", "networks", "eligible"),
    [
        ({}, {}, (), True),
        (None, {}, (), True),
        ({"podCIDR": "10.0.0.0/24"}, {}, (parse_network("10.0.0.0/24"),), True),
        ({"podCIDR": ""}, {}, (), True),
        ({"podCIDRs": ["bad"]}, {}, (), True),
        ({"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}, {}, (), False),
        ({"taints": [{"key": "node.kubernetes.io/not-ready"}]}, {}, (), True),
        ({}, {"deletionTimestamp": "2026-11-21T00:00:00Z"}, (), False),
        ({}, {"deletionTimestamp": None}, (), True),
    ],
)
def test_nodes(
    spec: Any, metadata: dict[str, Any], networks: tuple[Network, ...], eligible: bool
) -> None:
    value = node(spec, **metadata)
    assert value.pod_networks == networks
    assert value.eligible is eligible
