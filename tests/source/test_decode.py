"""What objects of the API mean, case by case, and that nothing the API says can break reading."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.errors import Problem
from pyproxy.model.address import Network, Port, Protocol, address_text, parse_network
from pyproxy.model.objects import (
    EndpointSlice,
    Kind,
    Node,
    ObjectName,
    Service,
    ServicePort,
    SlicePort,
    TrafficPolicy,
)
from pyproxy.source.decode import NotOurs, Reading, read

CLUSTER_IP = {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}
DUAL = {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]}
PORT = {"name": "http", "protocol": "TCP", "port": 80}


def reading(kind: Kind, obj: object) -> Reading:
    return read(kind, json.dumps(obj).encode())


def service(
    spec: dict[str, Any] | None, ingress: Any = None, **metadata: Any
) -> Service | NotOurs | Problem:
    obj = {
        "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"} | metadata,
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    value = reading(Kind.SERVICE, obj).value
    assert isinstance(value, Service | NotOurs | Problem)
    return value


def ours(spec: dict[str, Any], ingress: Any = None) -> Service:
    value = service(CLUSTER_IP | {"ports": [PORT]} | spec, ingress)
    assert isinstance(value, Service), value
    return value


def texts(addresses: tuple[Any, ...]) -> list[str]:
    return [address_text(address) for address in addresses]


def where(problems: tuple[Problem, ...]) -> list[str]:
    return [problem.field for problem in problems]


@pytest.mark.parametrize(
    ("spec", "labels", "reason"),
    [
        ({"clusterIP": "None"}, {}, "headless"),
        ({"clusterIPs": ["None"]}, {}, "headless"),
        ({"clusterIP": ""}, {}, "no clusterIP yet"),
        ({"clusterIP": None, "clusterIPs": None}, {}, "no clusterIP yet"),
        (None, {}, "no clusterIP yet"),
        (CLUSTER_IP | {"type": "ExternalName"}, {}, "ExternalName"),
        (CLUSTER_IP, {"service.kubernetes.io/service-proxy-name": "other"}, "another proxy"),
        (CLUSTER_IP, {"service.kubernetes.io/service-proxy-name": ""}, "another proxy"),
        (CLUSTER_IP, {"service.kubernetes.io/headless": ""}, "headless"),
    ],
)
def test_services_that_are_not_ours(spec: Any, labels: dict[str, str], reason: str) -> None:
    value = service(spec, labels=labels)
    assert isinstance(value, NotOurs)
    assert reason in value.reason


def test_a_service_as_the_server_writes_it() -> None:
    value = service(
        DUAL | {"ports": [PORT], "type": "ClusterIP", "ipFamilies": ["IPv4", "IPv6"]},
        uid="u-1",
        creationTimestamp="2026-11-21T01:59:06Z",
        labels=None,
        annotations=None,
        managedFields=[{"anything": ["goes"]}],
    )
    assert isinstance(value, Service)
    assert value.name == ObjectName("shop", "web")
    assert value.ports == (ServicePort("http", Protocol.TCP, Port(80)),)
    assert texts(value.cluster_ips) == ["10.96.0.1", "fd00::1"]
    assert value.families == (4, 6)
    assert (value.uid, value.created) == ("u-1", "2026-11-21T01:59:06Z")
    assert value.internal_policy is value.external_policy is TrafficPolicy.CLUSTER
    assert (value.affinity_timeout, value.health_check_port, value.problems) == (0, 0, ())


def test_cluster_ip_alone_speaks_where_cluster_ips_is_absent() -> None:
    assert texts(ours({"clusterIPs": None}).cluster_ips) == ["10.96.0.1"]


@pytest.mark.parametrize(
    ("spec", "expected", "problems"),
    [
        ({"externalIPs": None}, [], []),
        ({"externalIPs": ["192.0.2.1", "192.0.2.1"]}, ["192.0.2.1"], []),
        ({"externalIPs": ["::ffff:192.0.2.1"]}, ["192.0.2.1"], []),
        ({"externalIPs": ["010.0.0.1"]}, ["10.0.0.1"], []),
        (
            {"externalIPs": ["nonsense", "192.0.2.2", "", "9" * 5000]},
            ["192.0.2.2"],
            ["spec.externalIPs[0]", "spec.externalIPs[2]", "spec.externalIPs[3]"],
        ),
        ({"externalIPs": ["fd00::9", "192.0.2.2"]}, ["192.0.2.2"], ["spec.externalIPs[0]"]),
        (DUAL | {"externalIPs": ["fd00::9"]}, ["fd00::9"], []),
        ({"externalIPs": ["127.0.0.1"]}, [], ["spec.externalIPs[0]"]),
        ({"externalIPs": ["0.0.0.0"]}, [], ["spec.externalIPs[0]"]),
        ({"externalIPs": ["224.0.0.1"]}, [], ["spec.externalIPs[0]"]),
        ({"externalIPs": ["169.254.169.254"]}, [], ["spec.externalIPs[0]"]),
        (DUAL | {"externalIPs": ["fe80::1", "::1", "::", "ff02::1"]}, [], 4),
    ],
)
def test_external_ips(spec: dict[str, Any], expected: list[str], problems: Any) -> None:
    value = ours(spec)
    assert texts(value.external_ips) == expected
    if isinstance(problems, int):
        assert len(value.problems) == problems
    else:
        assert where(value.problems) == problems


def test_a_bad_cluster_ip_leaves_the_rest_of_the_service() -> None:
    value = ours(
        {"clusterIP": "x", "clusterIPs": ["x"], "ipFamilies": ["IPv4", "IPv5"]}
        | {"externalIPs": ["192.0.2.1", "fd00::1"]}
    )
    assert value.cluster_ips == ()
    assert value.families == (4,)
    assert texts(value.external_ips) == ["192.0.2.1"]
    assert where(value.problems) == ["spec.clusterIPs[0]", "spec.externalIPs[1]"]


@pytest.mark.parametrize(
    ("kind", "ingress", "expected"),
    [
        ("LoadBalancer", None, []),
        ("LoadBalancer", [{"ip": "198.51.100.9"}], ["198.51.100.9"]),
        ("LoadBalancer", [{"ip": "198.51.100.9", "ipMode": None}], ["198.51.100.9"]),
        ("LoadBalancer", [{"ip": "198.51.100.9", "ipMode": "VIP"}], ["198.51.100.9"]),
        ("LoadBalancer", [{"ip": "198.51.100.9", "ipMode": "Proxy"}], []),
        ("LoadBalancer", [{"hostname": "lb.example.com"}], []),
        ("LoadBalancer", [{"ip": "bad"}, {"ip": "198.51.100.9"}], ["198.51.100.9"]),
        ("LoadBalancer", [{"ip": "fd00::9"}], []),
        ("ClusterIP", [{"ip": "198.51.100.9"}], []),
    ],
)
def test_load_balancer_addresses(kind: str, ingress: Any, expected: list[str]) -> None:
    assert texts(ours({"type": kind}, ingress).load_balancer_ips) == expected


@pytest.mark.parametrize(
    ("kind", "ranges", "expected", "problems"),
    [
        ("LoadBalancer", None, [], 0),
        ("LoadBalancer", [], [], 0),
        ("LoadBalancer", [" 203.0.113.0/24 "], ["203.0.113.0/24"], 0),
        ("LoadBalancer", ["203.0.113.7/24", "203.0.113.0/24"], ["203.0.113.0/24"], 0),
        ("LoadBalancer", ["203.0.113.0/24", "10.0.0.1"], ["203.0.113.0/24"], 1),
        ("LoadBalancer", ["::ffff:10.0.0.0/104"], ["10.0.0.0/8"], 0),
        ("LoadBalancer", ["10.0.0.0/33", "nonsense"], ["0.0.0.0/32", "::/128"], 2),
        ("LoadBalancer", [""], ["0.0.0.0/32", "::/128"], 1),
        ("NodePort", ["203.0.113.0/24"], [], 0),
    ],
)
def test_source_ranges(kind: str, ranges: Any, expected: list[str], problems: int) -> None:
    value = ours({"type": kind, "loadBalancerSourceRanges": ranges})
    assert [str(network) for network in value.source_ranges] == expected
    assert len(value.problems) == problems


@pytest.mark.parametrize(
    ("spec", "internal", "external", "problems"),
    [
        ({}, "Cluster", "Cluster", []),
        ({"internalTrafficPolicy": "Local"}, "Local", "Cluster", []),
        ({"externalTrafficPolicy": "Local"}, "Cluster", "Cluster", []),
        (
            {"externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]},
            "Cluster",
            "Local",
            [],
        ),
        ({"externalTrafficPolicy": "Local", "type": "NodePort"}, "Cluster", "Local", []),
        (
            {"externalTrafficPolicy": "Local", "type": "LoadBalancer", "healthCheckNodePort": 3},
            "Cluster",
            "Local",
            [],
        ),
        ({"internalTrafficPolicy": ""}, "Cluster", "Cluster", []),
        (
            {"internalTrafficPolicy": "Near", "externalTrafficPolicy": "Far", "type": "NodePort"},
            "Cluster",
            "Cluster",
            ["spec.externalTrafficPolicy", "spec.internalTrafficPolicy"],
        ),
    ],
)
def test_traffic_policies(
    spec: dict[str, Any], internal: str, external: str, problems: list[str]
) -> None:
    value = ours(spec)
    assert (value.internal_policy.value, value.external_policy.value) == (internal, external)
    assert where(value.problems) == problems


@pytest.mark.parametrize(
    ("spec", "seconds", "problems"),
    [
        ({"sessionAffinity": "None"}, 0, []),
        ({"sessionAffinity": None}, 0, []),
        ({"sessionAffinity": "ClientIP"}, 10800, []),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": None}}, 10800, []),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}, 10800, []),
        ({"sessionAffinity": "ClientIP", "timeout": 5}, 5, []),
        ({"sessionAffinity": "ClientIP", "timeout": 86400}, 86400, []),
        (
            {"sessionAffinity": "ClientIP", "timeout": 0},
            10800,
            ["spec.sessionAffinityConfig.clientIP.timeoutSeconds"],
        ),
        ({"sessionAffinity": "Cookie"}, 0, ["spec.sessionAffinity"]),
        ({"timeout": 5}, 0, []),
    ],
)
def test_session_affinity(spec: dict[str, Any], seconds: int, problems: list[str]) -> None:
    if "timeout" in spec:
        spec = spec | {
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": spec["timeout"]}},
        }
    value = ours(spec)
    assert value.affinity_timeout == seconds
    assert where(value.problems) == problems


@pytest.mark.parametrize(
    ("spec", "port", "problems"),
    [
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, 30648, []),
        ({"type": "LoadBalancer"}, 0, []),
        ({"type": "NodePort", "externalTrafficPolicy": "Local"}, 0, []),
        (
            {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 0},
            0,
            ["spec.healthCheckNodePort"],
        ),
    ],
)
def test_health_check_node_port(spec: dict[str, Any], port: int, problems: list[str]) -> None:
    value = ours({"healthCheckNodePort": 30648} | spec)
    assert value.health_check_port == port
    assert where(value.problems) == problems


@pytest.mark.parametrize(
    ("kind", "ports", "expected", "problems"),
    [
        ("ClusterIP", None, [], []),
        ("ClusterIP", [{"port": 80}], [("", 6, 80, 0)], []),
        ("ClusterIP", [{"port": 80, "protocol": None}], [("", 6, 80, 0)], []),
        ("ClusterIP", [{"port": 53, "protocol": "UDP"}], [("", 17, 53, 0)], []),
        ("ClusterIP", [{"port": 9, "protocol": "SCTP"}], [("", 132, 9, 0)], []),
        ("ClusterIP", [{"port": 80, "nodePort": 30080}], [("", 6, 80, 0)], []),
        ("NodePort", [{"port": 80, "nodePort": 30080}], [("", 6, 80, 30080)], []),
        ("LoadBalancer", [{"port": 80, "nodePort": 30080}], [("", 6, 80, 30080)], []),
        ("LoadBalancer", [{"port": 80}], [("", 6, 80, 0)], []),
        (
            "NodePort",
            [{"port": 80, "nodePort": 99999}, {"port": 99999}, {"port": 81}],
            [("", 6, 80, 0), ("", 6, 81, 0)],
            ["spec.ports[0].nodePort", "spec.ports[1].port"],
        ),
        (
            "ClusterIP",
            [{"port": 80, "protocol": "ICMP"}, {"port": 81}],
            [("", 6, 81, 0)],
            ["spec.ports[0].protocol"],
        ),
        ("ClusterIP", [{"port": None}], [], ["spec.ports[0].port"]),
        (
            "NodePort",
            [
                {"name": "a", "port": 80, "nodePort": 30080},
                {"name": "b", "port": 80, "nodePort": 30081},
                {"name": "c", "port": 81, "nodePort": 30080},
                {"name": "d", "port": 80, "nodePort": 30080, "protocol": "UDP"},
            ],
            [("a", 6, 80, 30080), ("c", 6, 81, 0), ("d", 17, 80, 30080)],
            ["spec.ports[1].port", "spec.ports[2].nodePort"],
        ),
    ],
)
def test_service_ports(kind: str, ports: Any, expected: Any, problems: list[str]) -> None:
    value = ours({"type": kind, "ports": ports})
    assert [(p.name, p.protocol, p.port, p.node_port) for p in value.ports] == expected
    assert where(value.problems) == problems


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
    value = reading(Kind.ENDPOINT_SLICE, slice_obj(**given_fields)).value
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
def test_slices_that_are_not_ours(given_fields: dict[str, Any]) -> None:
    assert isinstance(reading(Kind.ENDPOINT_SLICE, slice_obj(**given_fields)).value, NotOurs)


def test_a_slice_as_the_server_writes_it() -> None:
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
    assert where(value.problems) == problems


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-11-21T00:00:00", "0001-01-01T00:00:00+23:59x", None]
)
def test_a_bad_trigger_time_is_unknown(text: Any) -> None:
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": text}
    assert sliced(metadata={"annotations": annotations}).triggered == 0


def test_an_unknown_address_type_is_a_problem() -> None:
    value = sliced(addressType="IPX")
    assert value.endpoints == ()
    assert where(value.problems) == ["addressType"]


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


def node(spec: Any = None, status: Any = None, **metadata: Any) -> Node:
    obj = {"metadata": {"name": "node-a"} | metadata, "spec": spec, "status": status}
    value = reading(Kind.NODE, obj)
    assert value.name == ObjectName("", "node-a")
    assert isinstance(value.value, Node), value
    return value.value


def test_a_node_as_the_server_writes_it() -> None:
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
    assert where(value.problems) == ["status.addresses[4].address"]


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
def test_objects_that_cannot_be_read_keep_their_name(
    kind: Kind, data: Any, name: ObjectName | None, version: str, field: str
) -> None:
    result = reading(kind, data)
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
def test_whatever_json_says_becomes_a_value_or_a_problem(kind: Kind, obj: Any) -> None:
    value = reading(kind, obj).value
    assert isinstance(value, Service | EndpointSlice | Node | NotOurs | Problem)


@given(st.sampled_from(Kind), st.binary())
def test_whatever_bytes_say_becomes_a_value_or_a_problem(kind: Kind, data: bytes) -> None:
    assert isinstance(read(kind, data).value, Problem)
