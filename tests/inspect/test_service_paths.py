"""The packets of a Service: which exist, with which marks, and how many are examined."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import Masquerade, Settings
from pyproxy.hostnet.devices import Devices
from pyproxy.hostnet.packet import Origin, ServicePaths
from pyproxy.inspect.service_paths import MAX_ENDPOINTS, service_paths
from pyproxy.model.address import Address, Family, Port, Protocol, parse_network
from pyproxy.model.destination import Destination
from pyproxy.model.objects import Endpoint, ServicePort, SlicePort
from pyproxy.netlink.links import Link
from tests.builders import EXTERNAL, HOST, LOCAL, ip, pod, slice_of, web, with_node_port
from tests.inspect.facts import agent_facts

POD, NODE, ELSEWHERE = Origin.POD, Origin.NODE, Origin.EXTERNAL


def paths(
    *names: str, client: str = "", settings: Settings | None = None, **spec: Any
) -> ServicePaths:
    slices = [slice_of(*(pod(name) for name in names or ("a1", "b1")))]
    agent = agent_facts(web(**spec), slices, settings=settings)
    return service_paths(agent, ip(client) if client else None)


def by_origin(found: ServicePaths) -> dict[Origin, set[str]]:
    origins = {path.origin for path in found.paths}
    return {
        origin: {str(p.leaving) for p in found.paths if p.origin is origin} for origin in origins
    }


def test_a_cluster_ip_has_packets_of_pods_and_of_the_node() -> None:
    found = paths()
    both = {"10.244.1.1:8080/tcp", "10.244.2.1:8080/tcp"}
    assert by_origin(found) == {POD: both, NODE: both}
    assert {str(p.arriving) for p in found.paths} == {"10.96.0.1:80/tcp"}
    assert str(found) == "2 endpoints"
    assert {p.leaving.in_device for p in found.paths if p.origin is NODE} == {None}
    assert {p.local for p in found.paths if p.node == HOST} == {True}


@pytest.mark.parametrize(
    ("spec", "settings", "masqueraded"),
    [
        # As in kube-proxy, packets that come from no pod are masqueraded.
        ({}, None, {NODE}),
        ({}, Settings(HOST, masquerade=Masquerade(everything=True)), {NODE, POD}),
        ({"ports": with_node_port(), "cluster_ips": []}, None, {NODE, POD, ELSEWHERE}),
        (
            {"ports": with_node_port(), "cluster_ips": [], "external_policy": LOCAL},
            None,
            {NODE},
        ),
    ],
)
def test_masqueraded_packets_have_the_mark(
    spec: dict[str, Any], settings: Settings | None, masqueraded: set[Origin]
) -> None:
    found = paths(settings=settings, families=(Family.IPV4,), **spec)
    assert {p.origin for p in found.paths if p.masqueraded} == masqueraded
    assert {p.leaving.mark for p in found.paths if p.masqueraded} == {1 << 14}
    assert {p.leaving.mark for p in found.paths if not p.masqueraded} <= {0}


def test_other_hosts_reach_local_endpoints_only_under_the_policy_local() -> None:
    found = by_origin(paths(external_policy=LOCAL, **EXTERNAL))
    assert found[ELSEWHERE] == {"10.244.1.1:8080/tcp"}
    assert found[NODE] == {"10.244.1.1:8080/tcp", "10.244.2.1:8080/tcp"}


def test_each_kind_of_frontend_has_a_path_to_one_endpoint_and_one_to_all() -> None:
    found = paths(**EXTERNAL)
    arriving = Counter(str(p.arriving) for p in found.paths if p.origin is POD)
    assert arriving == {
        "10.96.0.1:80/tcp": 2,
        # Behind the translation, those of other addresses are like these.
        "198.51.100.1:80/tcp": 2,
        "192.0.2.1:80/tcp": 1,
        "172.30.0.11:30080/tcp": 1,
    }


@pytest.mark.parametrize(
    ("client", "origin"),
    [
        ("10.244.1.99", POD),
        ("172.30.0.11", NODE),
        ("203.0.113.9", ELSEWHERE),
        ("10.244.2.9", ELSEWHERE),
    ],
)
def test_a_client_has_packets_of_its_own_only(client: str, origin: Origin) -> None:
    found = paths(client=client)
    assert {p.origin for p in found.paths} == {origin}
    assert {p.leaving.source for p in found.paths} == {ip(client)}


@pytest.mark.parametrize("client", ["127.0.0.1", "127.1.2.3"])
def test_a_client_with_a_loopback_address_is_this_node(client: str) -> None:
    found = paths(client=client)
    # Its packets to other addresses have another source.
    assert {(p.origin, p.leaving.source, p.leaving.in_device) for p in found.paths} == {
        (NODE, None, None)
    }


def test_further_addresses_of_this_node_are_its_own() -> None:
    agent = agent_facts(web(), [slice_of(pod("a1"), pod("b1"))])
    found = service_paths(agent, ip("10.244.1.254"), {ip("10.244.1.254")})
    assert {(p.origin, p.leaving.source) for p in found.paths} == {(NODE, ip("10.244.1.254"))}


@pytest.mark.parametrize(
    ("device", "is_own"), [("cbr0", True), ("eth0", True), ("lo", False), ("kube-ipvs0", False)]
)
def test_an_address_of_a_pod_on_a_device_without_a_network_is_not_the_nodes(
    device: str, is_own: bool
) -> None:
    links = {
        1: Link(1, "lo"),
        2: Link(2, "eth0"),
        3: Link(3, "cbr0", kind="bridge"),
        4: Link(4, "kube-ipvs0", kind="dummy"),
    }
    (index,) = (number for number, link in links.items() if link.name == device)
    devices = Devices(links, {ip("10.244.1.9"): index, ip("127.0.0.1"): 1})
    own = devices.own_addresses([parse_network("10.244.1.0/24")])
    assert own == ({ip("127.0.0.1"), ip("10.244.1.9")} if is_own else {ip("127.0.0.1")})


def test_an_ipv6_client_has_no_packet_to_an_ipv4_service() -> None:
    found = paths(client="fd10:1::9")
    assert (found.paths, found.reason) == ((), "no frontend of the target is programmed")


def test_a_destination_has_packets_of_its_frontend_only() -> None:
    service = web(ports=with_node_port())
    target = Destination(ip("172.30.0.11"), Port(30080), Protocol.TCP)
    agent = agent_facts(service, [slice_of(pod("a1"))], destination=target)
    assert {str(p.arriving) for p in service_paths(agent, None).paths} == {"172.30.0.11:30080/tcp"}


@pytest.mark.parametrize("mode", ProxyMode)
def test_ipvs_alone_routes_by_the_endpoint(mode: ProxyMode) -> None:
    found = paths(settings=Settings(HOST, mode=mode))
    assert found.by_source is (mode is not ProxyMode.IPVS)
    assert ("ipv4.vs.conntrack" in found.required) is (mode is ProxyMode.IPVS)


def test_without_endpoints_there_is_no_path() -> None:
    found = service_paths(agent_facts(web(), []), None)
    assert (found.paths, found.reason) == ((), "no endpoint is used")


def test_of_many_endpoints_local_ones_and_one_of_each_node_are_examined() -> None:
    many = [
        Endpoint(Address(bytes([10, 244, node, host])), node=f"node-{chr(96 + node)}")
        for node in range(1, 11)
        for host in range(1, 201)
    ]
    found = service_paths(agent_facts(web(), [slice_of(*many)]), None)
    assert str(found) == f"{MAX_ENDPOINTS} of 2,000 endpoints"
    nodes = Counter(p.node for p in found.paths if p.origin is NODE)
    assert nodes.pop(HOST) == MAX_ENDPOINTS // 2
    assert set(nodes.values()) == {1}
    # The routes to the other nodes are examined all the same.
    far = [Address(backend[:-2]) for backend in found.further]
    assert len(far) == 1
    assert {p.leaving.destination[2] for p in found.paths} | {far[0][2]} == set(range(1, 11))


def test_paths_are_bounded_whatever_the_service() -> None:
    ports = tuple(
        ServicePort(f"p{n}", Protocol.TCP, Port(80 + n), Port(30000 + n)) for n in range(100)
    )
    many = [Endpoint(ip(f"10.244.{n % 9}.{n % 250 + 1}"), node=f"n{n % 9}") for n in range(1000)]
    slices = [
        slice_of(
            *many,
            ports=(SlicePort(port.name, port.protocol, Port(8080)),),
            name=f"web-{port.name}",
        )
        for port in ports
    ]
    spec = dict(EXTERNAL) | {
        "ports": ports,
        "external_ips": [f"192.0.2.{n}" for n in range(1, 200)],
    }
    found = service_paths(agent_facts(web(**spec), slices), None)
    assert found.examined == MAX_ENDPOINTS
    assert len(found.paths) <= MAX_ENDPOINTS * 4 * len(Origin)
