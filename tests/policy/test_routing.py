"""Slices, ports, families and scopes in the routing of a Service, and its invariants."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.model.address import Address, Family, Port, Protocol, parse_network
from pyproxy.model.objects import Endpoint, EndpointSlice, Node, Service, ServicePort, SlicePort
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.routing import Frontend, PortRouting, Scope, Use
from tests.builders import (
    EXTERNAL,
    HOST,
    LOCAL,
    NODE,
    NODES,
    SLICE_PORTS,
    addresses,
    backends,
    draining,
    endpoints,
    ip,
    pod,
    services,
    slice_of,
    slices,
    terminated,
    unready,
    web,
    with_node_port,
)


def only(service: Service, *parts: EndpointSlice, node: Node | None = NODE) -> PortRouting:
    (port,) = route_service(service, parts, node, HOST).ports
    return port


def test_slices_are_merged_and_sorted() -> None:
    port = only(web(), slice_of(pod("b2"), name="web-2"), slice_of(pod("b1"), pod("a1")))
    assert port.cluster == backends("a1", "b1", "b2")


def test_a_repeated_endpoint_counts_once() -> None:
    port = only(web(), slice_of(pod("b1")), slice_of(pod("b1"), pod("b1"), name="web-2"))
    assert port.cluster == backends("b1")


@pytest.mark.parametrize("other", [unready("b1"), draining("b1"), terminated("b1")])
def test_of_two_copies_the_most_usable_counts(other: Endpoint) -> None:
    ready, rest = slice_of(pod("b1")), slice_of(other, name="web-2")
    assert only(web(), ready, rest) == only(web(), rest, ready)
    assert only(web(), rest, ready).cluster == backends("b1")


def test_of_two_copies_as_usable_the_one_on_this_node_counts() -> None:
    here, there = slice_of(pod("a1")), slice_of(pod("a1", node="node-b"), name="web-2")
    service = web(internal_policy=LOCAL)
    assert only(service, here, there) == only(service, there, here)
    assert only(service, there, here).local == backends("a1")


@pytest.mark.parametrize(
    ("hints", "others"),
    [({"zones": ["zone-1"]}, {"zones": ["zone-3"]}), ({"nodes": [HOST]}, {"nodes": ["node-b"]})],
)
def test_of_two_copies_that_differ_in_hints_the_hinted_one_counts(
    hints: dict[str, Any], others: dict[str, Any]
) -> None:
    hinted = slice_of(pod("b2", **others), pod("b1", **hints))
    bare = slice_of(pod("b1"), name="web-2")
    assert only(web(), hinted, bare) == only(web(), bare, hinted)
    assert only(web(), bare, hinted).cluster == backends("b1")


def test_endpoints_that_share_an_address_and_differ_in_port() -> None:
    first = slice_of(pod("b1"))
    second = slice_of(pod("b1"), ports=(SlicePort("", Protocol.TCP, Port(8081)),), name="web-2")
    assert only(web(), first, second).cluster == backends("b1") + backends("b1", port=8081)


def test_ports_match_by_name_and_protocol() -> None:
    service = web(
        ports=(
            ServicePort("dns", Protocol.UDP, Port(53)),
            ServicePort("dns-tcp", Protocol.TCP, Port(53)),
            ServicePort("metrics", Protocol.TCP, Port(9153)),
        )
    )
    part = slice_of(
        pod("b1"),
        ports=(
            SlicePort("dns", Protocol.UDP, Port(5353)),
            SlicePort("dns-tcp", Protocol.TCP, Port(5354)),
            SlicePort("metrics", Protocol.UDP, Port(9153)),
        ),
    )
    udp, tcp, metrics = route_service(service, [part], NODE, HOST).ports
    assert (udp.protocol, udp.cluster) == (Protocol.UDP, backends("b1", port=5353))
    assert (tcp.protocol, tcp.cluster) == (Protocol.TCP, backends("b1", port=5354))
    assert (metrics.cluster, metrics.frontends[0].use) == ((), Use.REJECT)


def test_a_named_target_port_may_differ_from_pod_to_pod() -> None:
    service = web(ports=(ServicePort("http", Protocol.TCP, Port(80)),))
    port = only(
        service,
        slice_of(pod("b1"), ports=(SlicePort("http", Protocol.TCP, Port(8080)),)),
        slice_of(pod("b2"), ports=(SlicePort("http", Protocol.TCP, Port(9090)),), name="web-2"),
    )
    assert port.cluster == backends("b1") + backends("b2", port=9090)


def test_dual_stack_has_a_routing_for_each_family() -> None:
    service = web(
        cluster_ips=["10.96.0.1", "fd00::1"],
        external_ips=["192.0.2.1", "2001:db8::1"],
        ports=with_node_port(),
        families=(Family.IPV4, Family.IPV6),
    )
    parts = [
        slice_of(pod("b1")),
        slice_of(pod("b2", Family.IPV6), family=Family.IPV6, name="web-2"),
    ]
    v4, v6 = route_service(service, parts, NODE, HOST).ports
    assert (v4.family, v6.family) == (Family.IPV4, Family.IPV6)
    assert v4.cluster == backends("b1")
    assert v6.cluster == backends("b2", family=Family.IPV6)
    assert [f.address for f in v4.frontends] == [ip("10.96.0.1"), ip("192.0.2.1"), b""]
    assert [f.address for f in v6.frontends] == [ip("fd00::1"), ip("2001:db8::1"), b""]


def test_one_family_may_be_empty_while_the_other_serves() -> None:
    service = web(cluster_ips=["10.96.0.1", "fd00::1"], families=(Family.IPV4, Family.IPV6))
    v4, v6 = route_service(service, [slice_of(pod("b1"))], NODE, HOST).ports
    assert v4.frontends[0].use is Use.CLUSTER
    assert v6.frontends[0].use is Use.REJECT


def test_families_default_to_those_of_the_cluster_ips() -> None:
    service = web(cluster_ips=["fd00::1"], external_ips=["192.0.2.1"], families=())
    (port,) = route_service(service, [], NODE, HOST).ports
    assert port.family is Family.IPV6
    assert [f.address for f in port.frontends] == [ip("fd00::1")]


def test_every_kind_of_address_is_a_frontend() -> None:
    port = only(web(**EXTERNAL), slice_of(pod("b1")))
    assert port.frontends == (
        Frontend(Scope.CLUSTER_IP, ip("10.96.0.1"), Port(80), Use.CLUSTER),
        Frontend(Scope.LOAD_BALANCER, ip("198.51.100.1"), Port(80), Use.CLUSTER),
        Frontend(Scope.EXTERNAL_IP, ip("192.0.2.1"), Port(80), Use.CLUSTER),
        Frontend(Scope.NODE_PORT, Address(b""), Port(30080), Use.CLUSTER),
    )


def test_an_address_has_one_frontend_with_source_ranges() -> None:
    port = only(
        web(
            external_ips=["192.0.2.1", "192.0.2.2", "10.96.0.1"],
            load_balancer_ips=["192.0.2.1", "192.0.2.3"],
        )
    )
    assert {f.address: f.scope for f in port.frontends} == {
        ip("10.96.0.1"): Scope.CLUSTER_IP,
        ip("192.0.2.1"): Scope.LOAD_BALANCER,
        ip("192.0.2.2"): Scope.EXTERNAL_IP,
        ip("192.0.2.3"): Scope.LOAD_BALANCER,
    }
    assert len(port.frontends) == 4


@pytest.mark.parametrize(
    ("ranges", "own", "added"),
    [
        (["172.30.0.0/24"], ["172.30.0.11", "fd30::11"], ["192.0.2.1/32", "192.0.2.2/32"]),
        (["fd30::/64"], ["172.30.0.11", "fd30::11"], ["2001:db8::1/128"]),
        (["172.30.0.11/32"], ["172.30.0.11"], ["192.0.2.1/32", "192.0.2.2/32"]),
        (["172.31.0.0/24"], ["172.30.0.11", "fd30::11"], []),
        (["172.30.0.0/24"], [], []),
        ([], ["172.30.0.11", "fd30::11"], []),
    ],
)
def test_ranges_with_the_node_allow_its_own_load_balancer_address(
    ranges: list[str], own: list[str], added: list[str]
) -> None:
    """Traffic of the node to a local address has that address as its source."""
    balanced = web(
        cluster_ips=["10.96.0.1", "fd00:10:96::1"],
        load_balancer_ips=["192.0.2.1", "192.0.2.2", "2001:db8::1"],
        source_ranges=ranges,
    )
    node = msgspec.structs.replace(NODE, addresses=tuple(map(ip, own)))
    expected = tuple(map(parse_network, [*ranges, *added]))
    assert route_service(balanced, [], node, HOST).source_ranges == expected
    assert route_service(balanced, [], None, HOST).source_ranges == balanced.source_ranges


def test_source_ranges_apply_to_load_balancer_addresses_only() -> None:
    ranges = ["203.0.113.0/24"]
    without = web(external_ips=["192.0.2.1"], source_ranges=ranges)
    balanced = web(load_balancer_ips=["192.0.2.1"], source_ranges=ranges)
    assert route_service(without, [], NODE, HOST).source_ranges == ()
    assert route_service(balanced, [], NODE, HOST).source_ranges == balanced.source_ranges


def test_affinity_is_passed_on() -> None:
    assert route_service(web(affinity_timeout=7), [], NODE, HOST).affinity_timeout == 7


@given(services(), slices(), st.randoms(use_true_random=False))
def test_the_order_of_slices_and_endpoints_does_not_matter(
    service: Service, parts: tuple[EndpointSlice, ...], random: Random
) -> None:
    shuffled = []
    for part in parts:
        members = list(part.endpoints)
        random.shuffle(members)
        shuffled.append(msgspec.structs.replace(part, endpoints=tuple(members)))
    random.shuffle(shuffled)
    assert route_service(service, shuffled, NODE, HOST) == route_service(service, parts, NODE, HOST)


@given(services(), slices())
def test_a_slice_given_twice_changes_nothing(
    service: Service, parts: tuple[EndpointSlice, ...]
) -> None:
    assert route_service(service, parts + parts, NODE, HOST) == route_service(
        service, parts, NODE, HOST
    )


@given(
    st.sampled_from(
        [
            web(),
            web(affinity_timeout=60, scheduler="rr", health_check_port=Port(30100)),
            web(cluster_ips=["10.96.0.1", "fd00::1", "10.96.0.2"]),
            web(families=(Family.IPV4, Family.IPV6), cluster_ips=["10.96.0.1", "fd00::1"]),
            web(internal_policy=LOCAL),
            web(ports=with_node_port()),
            web(external_ips=["192.0.2.1"]),
            web(load_balancer_ips=["192.0.2.1"]),
        ]
    ),
    st.lists(
        st.builds(Endpoint, addresses(Family.IPV4, 10, 6), node=NODES) | endpoints(Family.IPV4)
    ),
    st.just((SlicePort("", Protocol.TCP, Port(8080)),)) | SLICE_PORTS,
)
def test_another_slice_without_endpoints_changes_nothing(
    service: Service, members: list[Endpoint], ports: tuple[SlicePort, ...]
) -> None:
    part, empty = slice_of(*members, ports=ports), slice_of(ports=(), name="web-2")
    # One slice alone is mostly routed in a shorter way.
    assert route_service(service, (part,), NODE, HOST) == route_service(
        service, (part, empty), NODE, HOST
    )


@given(services(), slices())
def test_invariants_of_every_routing(service: Service, parts: tuple[EndpointSlice, ...]) -> None:
    result = route_service(service, parts, NODE, HOST)
    assert len(result.ports) == len(service.ports) * len(service.families)
    for port in result.ports:
        candidates: dict[bytes, list[Endpoint]] = {}
        for part in parts:
            for join in part.ports:
                if (part.family, join.name, join.protocol) == (
                    port.family,
                    port.name,
                    port.protocol,
                ):
                    for endpoint in part.endpoints:
                        key = endpoint.address + join.port.to_bytes(2, "big")
                        candidates.setdefault(key, []).append(endpoint)
        for name in ("cluster", "local", "hairpin"):
            chosen = getattr(port, name)
            assert list(chosen) == sorted(set(chosen)), name
        ready = {key for key, copies in candidates.items() if any(e.ready for e in copies)}
        standing_in = {
            key
            for key, copies in candidates.items()
            if any(e.serving and e.terminating for e in copies)
        }
        here = {key for key, copies in candidates.items() if any(e.node == HOST for e in copies)}
        assert set(port.cluster) <= (ready or standing_in)
        assert set(port.local) <= (ready | standing_in) & here
        uses = {frontend.use for frontend in port.frontends}
        places = {key: {e.node in {HOST, ""} for e in copies} for key, copies in candidates.items()}
        callers = {*port.cluster, *port.local}
        assert {key for key in callers if places[key] == {True}} <= set(port.hairpin) <= callers
        assert Use.SPLIT in uses or all(True in places[key] for key in port.hairpin)
        assert (Use.REJECT in uses) == (not ready and not standing_in)
        assert Use.REJECT not in uses or uses == {Use.REJECT}
        assert bool(port.cluster) == bool(uses & {Use.CLUSTER, Use.SPLIT})
        assert not port.local or uses & {Use.LOCAL, Use.SPLIT}
        assert Use.LOCAL not in uses or port.local
        assert Use.DROP not in uses or not port.local
        addresses = [(frontend.address, frontend.port) for frontend in port.frontends]
        assert len(addresses) == len(set(addresses))
        assert all(
            not frontend.address or len(frontend.address) * 8 == port.family.bits
            for frontend in port.frontends
        )
