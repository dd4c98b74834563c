"""A Service that lists addresses of others as its external IPs, before they have them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.network import Network

from pyproxy.config.modes import ProxyMode
from pyproxy.model.address import Address, Family, Port, Protocol, backend
from pyproxy.model.objects import (
    Endpoint,
    EndpointSlice,
    ObjectName,
    Service,
    ServicePort,
    SlicePort,
)
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.frontend_conflicts import FrontendOwners
from tests.agent.objects import Stage
from tests.builders import ip
from tests.semantics.proxied import Object, balanced, endpoint_slice, proxied, service

OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
VICTIM = "10.96.7.7"
TENANTS = 1000
API = ip("172.18.0.2")
PORT_80 = (ServicePort("", Protocol.TCP, Port(80)),)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def dated(obj: Object, created: str) -> Object:
    return obj | {"metadata": obj["metadata"] | {"creationTimestamp": created}}


def squatter(**more: Any) -> Object:
    ports = ({"name": "a", "port": 80}, {"name": "b", "port": 81}, {"name": "c", "port": 82})
    return dated(service("squatter", "10.96.0.1", ports=ports, **more), OLD)


SQUATTERS_PODS = endpoint_slice(
    "squatter", "b2", ports=[{"name": name, "port": 8080} for name in ("a", "b", "c")]
)


@pytest.mark.packets
def test_the_next_owner_of_a_cluster_ip_has_it_whole(
    mode: LabMode, network: Network, tmp_path: Path
) -> None:
    victim = dated(service("victim", VICTIM), NEW)
    owned = dated(
        service("balanced", "10.96.0.3", type="LoadBalancer", status=balanced("192.0.2.9")), NEW
    )
    objects = (
        squatter(externalIPs=[VICTIM, "192.0.2.9"]),
        SQUATTERS_PODS,
        endpoint_slice("victim", "a1"),
        endpoint_slice("balanced", "a1"),
    )
    with proxied(mode, network, tmp_path / "x", objects=objects) as node:
        node.reaches("a2", f"{VICTIM}:80", "b2")
        node.apply(victim, owned)
        for port in (80, 81):
            to = f"{VICTIM}:{port}"
            for who in ("a2", "na", "ext"):
                if port == 80:
                    node.reaches(who, to, "a1")
                else:
                    node.is_refused(who, to)
        node.reaches("ext", "192.0.2.9:80", "a1")
        node.reaches("ext", "192.0.2.9:81", "b2")
        node.logs(
            f"{VICTIM} port 81/TCP is not proxied for port 'b': the address is a cluster IP of "
            "Service shop/victim, which has all of its ports"
        )
        node.logs(
            "192.0.2.9 port 80/TCP is not proxied for port 'a': it is a load balancer address of "
            "Service shop/balanced, which precedes external IPs"
        )
        node.delete("Service", "victim")
        node.reaches("a2", f"{VICTIM}:81", "b2")


def tenant(number: int, **fields: Any) -> Service:
    """Return a Service with a cluster IP and a port of its own, and VICTIM as external IP."""
    return Service(
        ObjectName("evil", f"t{number:04}"),
        (ServicePort("", Protocol.TCP, Port(1000 + number)),),
        (Address(ip("10.97.0.0")[:2] + number.to_bytes(2, "big")),),
        external_ips=(ip(VICTIM),),
        families=(Family.IPV4,),
        created=OLD,
        **fields,
    )


def victim(**fields: Any) -> Service:
    port = ServicePort("", Protocol.TCP, Port(80))
    name, cluster_ips = ObjectName("shop", "victim"), (ip(VICTIM),)
    return Service(name, (port,), cluster_ips, families=(Family.IPV4,), created=NEW, **fields)


def test_a_new_cluster_ip_routes_a_bounded_number_of_services_at_once() -> None:
    stage = Stage()
    stage.begin(*map(tenant, range(TENANTS)))
    before = len(stage.recorder.commits)
    stage.handle_event(victim())
    stage.settle()
    sizes = [len(commit.routings) for commit in stage.recorder.commits[before:]]
    assert sizes[0] == 1, "one change made the transaction of a thousand"
    problems = [each for each in stage.reported if "10.96.7.7 port" in each.message]
    assert len({each.name for each in problems}) == TENANTS
    # Other changes of the victim affect no other Service, however many claim its address.
    stage.handle_event(victim(affinity_timeout=60))
    stage.settle()
    assert set(stage.recorder.commits[-1].routings) == {ObjectName("shop", "victim")}


def api_server() -> tuple[Service, EndpointSlice]:
    name = ObjectName("default", "kubernetes")
    port = ServicePort("https", Protocol.TCP, Port(443))
    return (
        Service(name, (port,), (ip("10.96.0.1"),), families=(Family.IPV4,), created=NEW),
        EndpointSlice(
            name,
            name,
            Family.IPV4,
            (SlicePort("https", Protocol.TCP, Port(6443)),),
            (Endpoint(ip("172.18.0.2")),),
        ),
    )


def external(address: str, *ports: int) -> Service:
    return Service(
        ObjectName("evil", "external"),
        tuple(ServicePort(str(port), Protocol.TCP, Port(port)) for port in ports),
        (ip("10.96.0.66"),),
        external_ips=(ip(address),),
        families=(Family.IPV4,),
        created=OLD,
    )


@pytest.mark.parametrize("first", ["evil", "api"])
def test_the_endpoints_of_the_api_server_stay_its_own(first: str) -> None:
    stage = Stage()
    evil, api = external("172.18.0.2", 80, 6443), api_server()
    stage.begin(*([evil, *api] if first == "evil" else api))
    stage.handle_event(evil)
    stage.settle()
    (message,) = [each.message for each in stage.reported]
    assert "172.18.0.2 port 6443/TCP is not proxied for port '6443'" in message
    assert "an API server's endpoint of Service default/kubernetes" in message


def test_the_servers_that_the_agent_talks_to_stay_reachable() -> None:
    """With its server's address hijacked the agent would never learn that the Service is gone."""
    stage = Stage()
    stage.begin(external("172.18.0.2", 80, 6443))
    assert stage.reported == []
    stage.api_servers = (backend(ip("172.18.0.2"), Port(6443)),)
    stage.agent.addresses_changed()
    stage.settle()
    (message,) = [each.message for each in stage.reported]
    assert message == (
        "172.18.0.2 port 6443/TCP is not proxied for port '6443': this node reaches the API server "
        "there"
    )


class Counted(str):
    """A time of creation that counts its comparisons."""

    __slots__ = ()
    comparisons = 0

    def __lt__(self, other: str) -> bool:
        Counted.comparisons += 1
        return str.__lt__(self, other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.parametrize(
    ("mode", "local", "served"),
    [(ProxyMode.NFTABLES, (), True), (ProxyMode.IPVS, (), False), (ProxyMode.IPVS, (API,), True)],
)
def test_ipvs_mode_never_takes_the_address_of_the_api_server(
    mode: ProxyMode, local: tuple[Address, ...], served: bool
) -> None:
    """With the address on its device, the node would reach none of the server's other ports."""
    stage = Stage(mode=mode)
    stage.local_addresses = local
    stage.api_servers = (backend(API, Port(6443)),)
    stage.begin(external("172.18.0.2", 80))
    assert [each.message for each in stage.reported] == (
        []
        if served
        else ["172.18.0.2 is the API server of this node, which would not reach it; ignored"]
    )


def test_many_claims_of_one_frontend_cost_a_search_each() -> None:
    count = 2000
    owners, affected = FrontendOwners(), 0
    Counted.comparisons = 0
    numbers = list(range(count))
    random.Random(15).shuffle(numbers)
    for number in numbers:
        service = Service(
            ObjectName("evil", f"s{number:05}"),
            (ServicePort("", Protocol.TCP, Port(80)),),
            external_ips=(ip(VICTIM),),
            families=(Family.IPV4,),
            created=Counted(OLD),
        )
        assigned = owners.assign(service, route_service(service, (), None, "node-a"))
        affected += len(assigned.affected.now)
        assert not assigned.affected.later
    assert affected <= count
    # Three searches of a claim in 11 steps; each step compares one time, for order and equality.
    assert 0 < Counted.comparisons <= count * 3 * 11 * 2
    for number in numbers:
        assert len(owners.remove(ObjectName("evil", f"s{number:05}")).now) <= 1


def test_a_service_with_many_claims_affects_one_other_for_each() -> None:
    """One edit of a Service routes no more others than it has frontends."""
    stage = Stage()
    addresses = tuple(Address(ip("198.18.0.0")[:3] + bytes((n,))) for n in range(200))
    rivals = [
        msgspec.structs.replace(tenant(n), external_ips=(addresses[n % 200],), ports=PORT_80)
        for n in range(TENANTS)
    ]
    greedy = msgspec.structs.replace(
        victim(), name=ObjectName("evil", "greedy"), external_ips=addresses, created=""
    )
    stage.begin(*rivals)
    before = len(stage.recorder.commits)
    stage.handle_event(greedy)
    stage.settle()
    routed = sum(len(commit.routings) for commit in stage.recorder.commits[before:])
    assert routed <= 1 + len(addresses)
