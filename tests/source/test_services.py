"""Decoding of Services."""

from __future__ import annotations

from typing import Any

import pytest

from pyproxy.errors import Problem
from pyproxy.model.address import Port, Protocol
from pyproxy.model.objects import (
    Kind,
    ObjectName,
    Service,
    ServicePort,
    TrafficPolicy,
)
from pyproxy.source.decode import NotProxied

from .decoded import decoded, fields_of, texts

CLUSTER_IP = {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}
DUAL = {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]}
PORT = {"name": "http", "protocol": "TCP", "port": 80}


def service(
    spec: dict[str, Any] | None, ingress: Any = None, **metadata: Any
) -> Service | NotProxied | Problem:
    obj = {
        "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"} | metadata,
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    value = decoded(Kind.SERVICE, obj).value
    assert isinstance(value, Service | NotProxied | Problem)
    return value


def proxied(spec: dict[str, Any], ingress: Any = None) -> Service:
    value = service(CLUSTER_IP | {"ports": [PORT]} | spec, ingress)
    assert isinstance(value, Service), value
    return value


@pytest.mark.parametrize(
    ("spec", "labels", "reason"),
    [
        ({"clusterIP": "None"}, {}, "headless"),
        ({"clusterIPs": ["None"]}, {}, "headless"),
        ({"clusterIP": ""}, {}, "no clusterIP yet"),
        ({"clusterIP": None, "clusterIPs": None}, {}, "no clusterIP yet"),
        (None, {}, "no clusterIP yet"),
        (CLUSTER_IP | {"type": "ExternalName"}, {}, "ExternalName"),
        (CLUSTER_IP, {"service.kubernetes.io/service-proxy-name": "other"}, "another program"),
        (CLUSTER_IP, {"service.kubernetes.io/service-proxy-name": ""}, "another program"),
        (CLUSTER_IP, {"service.kubernetes.io/headless": ""}, "headless"),
    ],
)
def test_services_that_are_not_proxied(spec: Any, labels: dict[str, str], reason: str) -> None:
    value = service(spec, labels=labels)
    assert isinstance(value, NotProxied)
    assert reason in value.reason


def test_a_service_from_a_real_api_server() -> None:
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


def test_cluster_ip_is_used_without_cluster_ips() -> None:
    assert texts(proxied({"clusterIPs": None}).cluster_ips) == ["10.96.0.1"]


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
    value = proxied(spec)
    assert texts(value.external_ips) == expected
    if isinstance(problems, int):
        assert len(value.problems) == problems
    else:
        assert fields_of(value.problems) == problems


def test_an_invalid_cluster_ip_is_left_out() -> None:
    value = proxied(
        {"clusterIP": "x", "clusterIPs": ["x"], "ipFamilies": ["IPv4", "IPv5"]}
        | {"externalIPs": ["192.0.2.1", "fd00::1"]}
    )
    assert value.cluster_ips == ()
    assert value.families == (4,)
    assert texts(value.external_ips) == ["192.0.2.1"]
    assert fields_of(value.problems) == ["spec.clusterIPs[0]", "spec.externalIPs[1]"]


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
    assert texts(proxied({"type": kind}, ingress).load_balancer_ips) == expected


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
    value = proxied({"type": kind, "loadBalancerSourceRanges": ranges})
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
    value = proxied(spec)
    assert (value.internal_policy.value, value.external_policy.value) == (internal, external)
    assert fields_of(value.problems) == problems


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
    value = proxied(spec)
    assert value.affinity_timeout == seconds
    assert fields_of(value.problems) == problems


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
    value = proxied({"healthCheckNodePort": 30648} | spec)
    assert value.health_check_port == port
    assert fields_of(value.problems) == problems


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
    value = proxied({"type": kind, "ports": ports})
    assert [(p.name, p.protocol, p.port, p.node_port) for p in value.ports] == expected
    assert fields_of(value.problems) == problems
