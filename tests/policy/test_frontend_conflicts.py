from __future__ import annotations

from collections.abc import Iterable
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.errors import Problem
from pyproxy.model.address import Address, Family, Port, Protocol, address_text, parse_address
from pyproxy.model.objects import ObjectName, Service, ServicePort
from pyproxy.policy.claims import cluster_claim
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.frontend_conflicts import Affected, FrontendOwners
from pyproxy.policy.routing import Scope, ServiceRouting, expand_node_ports
from tests.builders import (
    CLUSTER,
    HOST,
    LOCAL,
    NODE,
    backends,
    ip,
    pod,
    services,
    slice_of,
    web,
    with_node_port,
)
from tests.examples import examples

OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
FIRST, SECOND, THIRD = (ObjectName("shop", name) for name in ("first", "second", "third"))

Outcome = dict[ObjectName, tuple[ServiceRouting, tuple[Problem, ...]]]


def everyone(affected: Affected) -> frozenset[ObjectName]:
    return affected.now | affected.later


class Cluster:
    """Services that are added and deleted, each assigned again whenever it is affected.

    With `alone` those with one frontend, a cluster IP, take the short way if they can.
    """

    def __init__(self, node_addresses: tuple[Address, ...] = (), *, alone: bool = False) -> None:
        self.node_addresses = node_addresses
        self.alone = alone
        self.owners = FrontendOwners()
        self.services: dict[ObjectName, Service] = {}
        self.outcome: Outcome = {}
        self.reassigned: set[ObjectName] = set()
        self.rounds = 2

    def put(self, service: Service) -> None:
        self.services[service.name] = service
        self._settle({service.name})

    def delete(self, name: ObjectName) -> None:
        self.services.pop(name, None)
        self.outcome.pop(name, None)
        self._settle(everyone(self.owners.remove(name)))

    def _settle(self, names: Iterable[ObjectName]) -> None:
        waiting = list(names)
        self.reassigned = set()
        for _ in range(self.rounds):
            following: list[ObjectName] = []
            for name in waiting:
                service = self.services[name]
                routing = route_service(service, [], NODE, HOST)
                if self.alone and is_alone(service, routing, self.owners):
                    self.outcome[name] = (routing, ())
                    continue
                assigned = self.owners.assign(service, routing, node_addresses=self.node_addresses)
                routing = assigned.routing
                if self.node_addresses:
                    routing = expand_node_ports(routing, self.node_addresses)
                self.outcome[name] = (routing, assigned.problems)
                following += everyone(assigned.affected)
            self.reassigned.update(following)
            waiting = following
        assert not waiting, "assigning unchanged routings again affected a further Service"

    def places(self, name: ObjectName) -> set[tuple[bytes, int]]:
        found, _ = self.outcome[name]
        return {(f.address, f.port) for port in found.ports for f in port.frontends}

    def problems(self, name: ObjectName) -> list[str]:
        return [str(problem) for problem in self.outcome[name][1]]


def is_alone(service: Service, routing: ServiceRouting, owners: FrontendOwners) -> bool:
    """Assign a Service with one frontend, a cluster IP, if no other Service is concerned."""
    frontends = [each for port in routing.ports for each in port.frontends]
    if service.health_check_port or [each.scope for each in frontends] != [Scope.CLUSTER_IP]:
        return False
    (port,) = (each for each in routing.ports if each.frontends)
    return owners.assign_alone(cluster_claim(service, port))


def claimant(name: ObjectName, created: str, number: int, external: str = "192.0.2.1") -> Service:
    return web(
        name=name, created=created, cluster_ips=[f"10.96.0.{number}"], external_ips=[external]
    )


def test_a_frontend_without_conflict() -> None:
    service = claimant(FIRST, OLD, 1)
    whole = route_service(service, [], NODE, HOST)
    assigned = FrontendOwners().assign(service, whole)
    assert assigned.routing is whole
    assert assigned.problems == ()
    assert not assigned.affected


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_older_service_wins_and_the_younger_has_a_problem(order: tuple[int, int]) -> None:
    cluster = Cluster()
    both = [claimant(SECOND, OLD, 1), claimant(FIRST, NEW, 2)]
    for i in order:
        cluster.put(both[i])
    assert len(cluster.places(SECOND)) == 2
    assert cluster.problems(SECOND) == []
    assert len(cluster.places(FIRST)) == 1
    assert cluster.problems(FIRST) == [
        "Service shop/first: spec.externalIPs: 192.0.2.1 port 80/TCP is not proxied for port '': "
        "Service shop/second, which is older, claims it too"
    ]


def test_of_two_as_old_the_first_by_name_wins() -> None:
    cluster = Cluster()
    cluster.put(claimant(SECOND, OLD, 2))
    cluster.put(claimant(FIRST, OLD, 1))
    assert len(cluster.places(FIRST)) == 2
    assert "Service shop/first, as old and first by name" in cluster.problems(SECOND)[0]


def test_the_next_oldest_wins_when_the_owner_is_deleted() -> None:
    cluster = Cluster()
    for service in (claimant(FIRST, OLD, 1), claimant(SECOND, NEW, 2), claimant(THIRD, NEW, 3)):
        cluster.put(service)
    assert "shop/second" in cluster.problems(THIRD)[0]
    cluster.delete(FIRST)
    assert len(cluster.places(SECOND)) == 2
    assert cluster.problems(SECOND) == []
    assert len(cluster.places(THIRD)) == 1


def test_an_owner_that_drops_a_frontend_releases_it() -> None:
    cluster = Cluster()
    cluster.put(claimant(FIRST, OLD, 1))
    cluster.put(claimant(SECOND, NEW, 2))
    cluster.put(claimant(FIRST, OLD, 1, external="192.0.2.9"))
    assert cluster.problems(SECOND) == []
    assert cluster.reassigned == {SECOND}


def test_an_owner_that_is_recreated_is_the_younger_one() -> None:
    cluster = Cluster()
    cluster.put(claimant(FIRST, OLD, 1))
    cluster.put(claimant(SECOND, NEW, 2))
    cluster.put(claimant(FIRST, "2026-01-03T00:00:00Z", 1))
    assert cluster.problems(SECOND) == []
    assert len(cluster.places(FIRST)) == 1


def test_another_port_or_protocol_of_the_same_address_is_no_conflict() -> None:
    cluster = Cluster()
    cluster.put(claimant(FIRST, OLD, 1))
    for name, port in (
        (SECOND, ServicePort("", Protocol.TCP, Port(81))),
        (THIRD, ServicePort("", Protocol.UDP, Port(80))),
    ):
        cluster.put(web(name=name, ports=(port,), external_ips=["192.0.2.1"], cluster_ips=[]))
    assert not any(cluster.problems(name) for name in (FIRST, SECOND, THIRD))


def test_a_node_port_belongs_to_one_service_per_family() -> None:
    cluster = Cluster()
    cluster.put(web(name=FIRST, created=OLD, ports=with_node_port()))
    cluster.put(web(name=SECOND, created=NEW, cluster_ips=["10.96.0.2"], ports=with_node_port()))
    cluster.put(
        web(
            name=THIRD,
            created=NEW,
            cluster_ips=["fd00::3"],
            families=(Family.IPV6,),
            ports=with_node_port(),
        )
    )
    assert cluster.problems(THIRD) == []
    assert cluster.problems(SECOND) == [
        "Service shop/second: spec.ports: node port 30080/TCP (IPv4) is not proxied for port '': "
        "Service shop/first, which is older, claims it too"
    ]


def test_two_ports_of_one_service_with_the_same_node_port() -> None:
    service = web(
        ports=(
            ServicePort("a", Protocol.TCP, Port(80), Port(30080)),
            ServicePort("b", Protocol.TCP, Port(81), Port(30080)),
            ServicePort("c", Protocol.UDP, Port(81), Port(30080)),
        )
    )
    cluster = Cluster()
    cluster.put(service)
    assigned, problems = cluster.outcome[service.name]
    assert [len(port.frontends) for port in assigned.ports] == [2, 1, 2]
    assert [problem.field for problem in problems] == ["spec.ports"]
    assert "another port of this Service has it" in problems[0].message
    cluster.put(web())
    assert cluster.problems(service.name) == []


AT = parse_address("172.30.0.11")


@pytest.mark.parametrize("is_divided", [False, True])
def test_another_port_of_the_service_loses_a_node_address_to_a_node_port(is_divided: bool) -> None:
    service = web(
        ports=(
            ServicePort("a", Protocol.TCP, Port(80), Port(30080)),
            ServicePort("b", Protocol.TCP, Port(30080)),
        ),
        external_ips=["172.30.0.11"],
    )
    owners = FrontendOwners()
    assigned = owners.assign(*routed(service), node_addresses={AT})
    if is_divided:
        assigned = msgspec.structs.replace(
            assigned, routing=expand_node_ports(assigned.routing, [AT])
        )
    at_node = [
        port.name
        for port in assigned.routing.ports
        for frontend in port.frontends
        if frontend.address in (b"", AT) and frontend.port == 30080
    ]
    assert at_node == ["a"]
    (problem,) = assigned.problems
    assert "another port of this Service has it" in problem.message


def test_a_port_that_lost_all_its_frontends_is_left_out() -> None:
    cluster = Cluster()
    cluster.put(claimant(FIRST, OLD, 1))
    cluster.put(web(name=SECOND, created=NEW, cluster_ips=[], external_ips=["192.0.2.1"]))
    assert cluster.outcome[SECOND][0].ports == ()


def test_a_port_keeps_the_endpoints_of_its_remaining_frontends() -> None:
    assignments = FrontendOwners()
    assignments.assign(*routed(claimant(FIRST, OLD, 1)))
    split = claimant(SECOND, NEW, 2)
    split = msgspec.structs.replace(split, external_policy=LOCAL, internal_policy=CLUSTER)
    service, whole = routed(split)
    assert whole.ports[0].local == backends("a1")
    (port,) = assignments.assign(service, whole).routing.ports
    assert (port.cluster, port.local) == (backends("a1", "b1"), ())
    assert port.hairpin == backends("a1", "b1")


def routed(service: Service) -> tuple[Service, ServiceRouting]:
    return service, route_service(service, [slice_of(pod("a1"), pod("b1"))], NODE, HOST)


def test_removing_an_unknown_service_affects_no_service() -> None:
    assert not FrontendOwners().remove(FIRST)


@pytest.mark.parametrize("gone", [0, 500, 999])
def test_in_a_long_queue_one_neighbour_is_affected(gone: int) -> None:
    cluster = Cluster()
    names = [ObjectName("shop", f"s{i:03}") for i in range(1000)]
    for name in names:
        cluster.put(web(name=name, cluster_ips=[], external_ips=["192.0.2.1"]))
    assert cluster.owners.remove(names[gone]).now == frozenset(names[gone + 1 : gone + 2])


NAMES = [ObjectName("shop", name) for name in "abcd"]
EVENTS = st.lists(
    st.sampled_from(NAMES).flatmap(lambda name: st.one_of(services(name), st.just(name))),
    max_size=12,
)


def live_through(
    events: list[Service | ObjectName], lived: Cluster, fresh: Cluster, random: Random
) -> list[Service]:
    """Apply events to one cluster, and what remains to another; return what remains.

    The outcome of both must be the same.
    """
    for event in events:
        if isinstance(event, Service):
            lived.put(event)
        else:
            lived.delete(event)
    remaining = list(lived.services.values())
    random.shuffle(remaining)
    for service in remaining:
        fresh.put(service)
    assert lived.outcome == fresh.outcome
    return remaining


@settings(max_examples=examples(60))
@given(EVENTS, st.randoms(use_true_random=False))
def test_the_owners_depend_on_existing_services_only(
    events: list[Service | ObjectName], random: Random
) -> None:
    lived, fresh = Cluster(alone=True), Cluster()
    remaining = live_through(events, lived, fresh, random)

    owners: dict[tuple[object, ...], ObjectName] = {}
    for name, (assigned, _) in lived.outcome.items():
        for port in assigned.ports:
            for frontend in port.frontends:
                place = (port.family, port.protocol, frontend.address, frontend.port)
                assert place not in owners, (name, owners[place])
                owners[place] = name
    for service in remaining:
        wanted = route_service(service, [], NODE, HOST)
        for port in wanted.ports:
            for frontend in port.frontends:
                place = (port.family, port.protocol, frontend.address, frontend.port)
                assert place in owners, "a claimed frontend has an owner"


TIMES = st.sampled_from([OLD, NEW])
SOME = tuple(ip(f"10.0.0.{number}") for number in range(3))


@st.composite
def squatters(draw: st.DrawFn, name: ObjectName) -> Service:
    """Draw a Service whose addresses of any kind are those of others, and of the node."""
    if draw(st.booleans()):
        cluster_ip = draw(st.sampled_from(SOME[1:]))
        return web(name=name, cluster_ips=[address_text(cluster_ip)], created=draw(TIMES))

    def some(size: int = 2) -> tuple[Address, ...]:
        return tuple(draw(st.lists(st.sampled_from(SOME), max_size=size, unique=True)))

    numbers = st.sampled_from([Port(80), Port(81), Port(30080)])
    ports = draw(st.lists(numbers, min_size=1, max_size=2, unique=True))
    node_ports = draw(st.lists(st.sampled_from([0, 81, 30080]), min_size=2, max_size=2))
    return Service(
        name,
        tuple(
            ServicePort(str(port), Protocol.TCP, port, Port(node_port))
            for port, node_port in zip(ports, node_ports, strict=False)
        ),
        # ReservedFilter leaves out cluster IPs on the node's addresses.
        tuple(each for each in some(1) if each != SOME[0]),
        some(),
        some(),
        families=(Family.IPV4,),
        health_check_port=draw(st.sampled_from([Port(0), Port(80), Port(30080)])),
        created=draw(TIMES),
    )


SQUATS = st.lists(
    st.sampled_from(NAMES).flatmap(lambda name: st.one_of(squatters(name), st.just(name))),
    max_size=12,
)


@settings(max_examples=examples(300))
@given(SQUATS, st.randoms(use_true_random=False))
def test_the_strongest_claim_has_each_frontend_in_any_order(
    events: list[Service | ObjectName], random: Random
) -> None:
    lived, fresh = Cluster(SOME[:1], alone=True), Cluster(SOME[:1])
    remaining = live_through(events, lived, fresh, random)
    owners = {
        (frontend.address, frontend.port): name
        for name, (routing, _) in lived.outcome.items()
        for port in routing.ports
        for frontend in port.frontends
    }
    assert owners == plain_owners(remaining, SOME[:1])


def plain_owners(
    services: list[Service], node_addresses: tuple[Address, ...]
) -> dict[tuple[Address, int], ObjectName]:
    """Compute the owners by the documented rules alone."""
    claims: dict[tuple[Address, int], list[tuple[int, str, ObjectName]]] = {}
    for each in services:

        def claim(kind: int, address: Address, port: int, each: Service = each) -> None:
            claims.setdefault((address, port), []).append((kind, each.created, each.name))

        scopes = dict.fromkeys(each.external_ips, 5)
        scopes |= dict.fromkeys(each.load_balancer_ips, 3) | dict.fromkeys(each.cluster_ips, 0)
        for port in each.ports:
            for address, kind in scopes.items():
                others = [
                    other for other in services if address in other.cluster_ips and other != each
                ]
                if not kind or not others:
                    claim(kind, address, port.port)
            for address in node_addresses:
                if port.node_port:
                    claim(2, address, port.node_port)
        if each.health_check_port:
            for address in node_addresses:
                claim(1, address, each.health_check_port)
    strongest = {place: min(found) for place, found in claims.items()}
    return {place: name for place, (kind, _, name) in strongest.items() if kind != 1}


@given(st.lists(services(), max_size=3))
def test_after_all_removals_no_claim_is_left(versions: list[Service]) -> None:
    assignments = FrontendOwners()
    for service in versions:
        assignments.assign(service, route_service(service, [], NODE, HOST))
    assignments.remove(versions[0].name if versions else FIRST)
    other = web(name=FIRST, created=NEW)
    for service in versions:
        assert assignments.assign(other, route_service(service, [], NODE, HOST)).problems == ()


@settings(max_examples=examples(60))
@given(SQUATS, st.randoms(use_true_random=False))
def test_an_address_that_comes_to_the_node_or_leaves_it_moves_frontends(
    events: list[Service | ObjectName], random: Random
) -> None:
    lived, fresh = Cluster(SOME[:1], alone=True), Cluster(SOME[:1])
    remaining = live_through(events, lived, fresh, random)
    for addresses in (SOME[:2], SOME[1:2]):
        moved = frozenset(lived.node_addresses) ^ frozenset(addresses)
        lived.node_addresses = addresses
        # Those that are affected have the old addresses still, and may affect others.
        lived.rounds = 4
        # As ServiceRouter does: first those with a claim at the address, then all.
        for name in (*lived.owners.at(moved), *(each.name for each in remaining)):
            lived.put(lived.services[name])
        other = Cluster(addresses)
        for each in remaining:
            other.put(each)
        for each in remaining:
            assert lived.places(each.name) == other.places(each.name)
            assert lived.problems(each.name) == other.problems(each.name)
