"""Commits open, change and close health check node ports."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import msgspec
import pytest

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit
from pyproxy.agent.listeners import HealthChecks
from pyproxy.health.service_health import ListenOptions, ServiceHealthServer
from pyproxy.model.address import Family, Port, Protocol, parse_address
from pyproxy.model.events import Delete, Upsert
from pyproxy.model.objects import Endpoint, EndpointSlice, Kind, Service, SlicePort, TrafficPolicy
from pyproxy.policy.routing import ServiceRouting
from tests.agent.objects import HOSTNAME
from tests.builders import name, service
from tests.health.conftest import running_http
from tests.ports import reserved_port
from tests.waiting import PATIENCE

LOOPBACKS = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
HTTP_PORT = (SlicePort("http", Protocol.TCP, Port(8080)),)


@pytest.fixture
def checks() -> Iterator[ServiceHealthServer]:
    with running_http() as thread:
        options = ListenOptions(100)
        made = ServiceHealthServer(thread, options, lambda: True, lambda problem: None)
        yield made
        made.close()


@pytest.fixture
def port() -> Iterator[Port]:
    with reserved_port() as free:
        yield Port(free)


def balanced(port: Port, *families: Family) -> Service:
    return msgspec.structs.replace(
        service("web", 1),
        families=families,
        external_policy=TrafficPolicy.LOCAL,
        health_check_port=port,
    )


def part(number: int, *endpoints: Endpoint, ports: tuple[SlicePort, ...] = HTTP_PORT) -> Upsert:
    family = Family.IPV6 if len(endpoints[0].address) == 16 else Family.IPV4
    return Upsert(EndpointSlice(name(f"web-{number}"), name("web"), family, ports, endpoints))


def at(address: str, *, node: str = HOSTNAME, ready: bool = True) -> Endpoint:
    return Endpoint(parse_address(address), node=node, ready=ready)


def commit(listener: HealthChecks, cluster_state: ClusterState) -> None:
    held = name("web") in cluster_state.services
    routings = {name("web"): ServiceRouting(name("web"), ()) if held else None}
    addresses = tuple(map(parse_address, LOOPBACKS.values()))
    listener.committed(
        Commit(routings, written=routings, full=False, node_port_addresses=addresses), cluster_state
    )


def counted(port: Port, family: Family) -> int | None:
    """The number of endpoints in the response of a port, None while it is closed."""
    connection = http.client.HTTPConnection(LOOPBACKS[family], port, timeout=PATIENCE)
    try:
        connection.request("GET", "/")
        return int(json.loads(connection.getresponse().read())["localEndpoints"])
    except ConnectionRefusedError:
        return None
    finally:
        connection.close()


def test_each_family_counts_the_ready_pods_of_this_node_once(
    checks: ServiceHealthServer, port: Port
) -> None:
    listener, cluster_state = HealthChecks(checks, HOSTNAME), ClusterState()
    for event in (
        Upsert(balanced(port, *Family)),
        part(1, at("10.244.1.5"), at("10.244.1.6"), at("10.244.2.5", node="node-b")),
        part(2, at("10.244.1.5"), at("10.244.1.7", ready=False)),
        part(3, at("fd10:1::5")),
        part(4, at("10.244.1.9"), ports=()),
    ):
        cluster_state.handle_event(event, 0.0)
    commit(listener, cluster_state)
    assert counted(port, Family.IPV4) == 2
    assert counted(port, Family.IPV6) == 1


def test_a_service_of_one_family_is_asked_there_and_its_port_goes_with_it(
    checks: ServiceHealthServer, port: Port
) -> None:
    listener, cluster_state = HealthChecks(checks, HOSTNAME), ClusterState()
    for event in (Upsert(balanced(port, Family.IPV4)), part(1, at("fd10:1::5"))):
        cluster_state.handle_event(event, 0.0)
    commit(listener, cluster_state)
    assert counted(port, Family.IPV4) == 0
    assert counted(port, Family.IPV6) is None
    cluster_state.handle_event(Delete(Kind.SERVICE, name("web")), 0.0)
    commit(listener, cluster_state)
    assert counted(port, Family.IPV4) is None
