"""Decoding of Nodes."""

from __future__ import annotations

from typing import Any

import pytest

from pyproxy.model.address import Network, parse_network
from pyproxy.model.objects import (
    Kind,
    Node,
    ObjectName,
)

from .decoded import decoded, fields_of, texts


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
