"""One Service or slice as large as the API server stores: bounded rows, and linear work."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

import msgspec
import pytest

from pyproxy.agent.node import NodeRules
from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.inspect.services import services
from pyproxy.model.address import Address, Family, Network, Port, Protocol
from pyproxy.model.objects import (
    Endpoint,
    EndpointSlice,
    Service,
    ServicePort,
    SlicePort,
)
from pyproxy.model.service_bounds import DEFAULT_BOUNDS, ServiceBounds
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.frontend_conflicts import FrontendOwners
from pyproxy.policy.routing import Scope, ServiceRouting
from pyproxy.policy.service_bounds import Bounded, within_bounds
from tests.agent.objects import HOSTNAME, NODE, Stage
from tests.builders import WEB, endpoint_slice, ip, name, service
from tests.config.parsing import parse
from tests.hostile.counting import Unsearchable
from tests.ui.snapshots import snapshot

SMALL = ServiceBounds(frontends=100, endpoints=1000, source_ranges=50)
TCP = Protocol.TCP


def address(network: int, number: int) -> Address:
    return Address(bytes((network,)) + number.to_bytes(3, "big"))


def giant(
    ports: int, *, external: int = 0, balanced: int = 0, ranges: int = 0, node_ports: int = 0
) -> Service:
    return Service(
        WEB,
        tuple(
            ServicePort(f"p{n}", TCP, Port(1000 + n), Port(30000 + n if n < node_ports else 0))
            for n in range(ports)
        ),
        (ip("10.96.0.1"),),
        external_ips=tuple(address(192, n) for n in range(external)),
        load_balancer_ips=tuple(address(198, n) for n in range(balanced)),
        source_ranges=tuple(Network(address(20, n), 32) for n in range(ranges)),
        families=(Family.IPV4,),
    )


def part(endpoints: Sequence[Endpoint], ports: int, number: int = 0) -> EndpointSlice:
    return EndpointSlice(
        name(f"web-{number}"),
        WEB,
        Family.IPV4,
        tuple(SlicePort(f"p{n}", TCP, Port(8080)) for n in range(ports)),
        tuple(endpoints),
    )


def endpoints(count: int, node: str = "node-b") -> list[Endpoint]:
    return [Endpoint(address(10, n), node=node) for n in range(count)]


def routing(bounded: Bounded) -> ServiceRouting:
    return route_service(bounded.service, bounded.slices, NODE, HOSTNAME)


def frontends(bounded: Bounded) -> dict[Scope, int]:
    found = [each.scope for port in routing(bounded).ports for each in port.frontends]
    return {scope: found.count(scope) for scope in Scope}


def bounded(big: Service, *slices: EndpointSlice, bounds: ServiceBounds = SMALL) -> Bounded:
    return within_bounds(big, slices, HOSTNAME, bounds)


CUTS = [
    (giant(50, external=1), (50, 0, 0, 50), ()),
    (giant(10, external=30), (10, 0, 0, 90), ("21 of 30 spec.externalIPs",)),
    (
        giant(10, balanced=5, external=30, node_ports=10),
        (10, 10, 50, 30),
        ("27 of 30 spec.externalIPs",),
    ),
    (
        giant(10, balanced=30, external=30),
        (10, 0, 90, 0),
        ("21 of 30 status.loadBalancer.ingress", "30 of 30 spec.externalIPs"),
    ),
    (
        giant(80, balanced=1, external=1, node_ports=80),
        (80, 20, 0, 0),
        ("60 of 80 spec.ports[*].nodePort", "1 of 1 spec.externalIPs"),
    ),
    (giant(150, external=1), (100, 0, 0, 0), ("50 of 150 spec.ports", "1 of 1 spec.externalIPs")),
]


@pytest.mark.parametrize(("big", "kept", "named"), CUTS)
def test_the_most_important_frontends_are_kept(
    big: Service, kept: tuple[int, ...], named: tuple[str, ...]
) -> None:
    found = bounded(big)
    counts = frontends(found)
    order = (Scope.CLUSTER_IP, Scope.NODE_PORT, Scope.LOAD_BALANCER, Scope.EXTERNAL_IP)
    assert tuple(counts[scope] for scope in order) == kept
    assert len(found.problems) == bool(named)
    for each in named:
        assert each in found.problems[0].message
        assert "--max-frontends-per-service=100" in found.problems[0].message


def test_the_flags_bound_a_service() -> None:
    kinds = ("frontends", "endpoints", "source-ranges")
    found = parse(*(f"--max-{kind}-per-service={n}" for n, kind in enumerate(kinds, 1)))
    assert found.bounds == ServiceBounds(1, 2, 3)
    assert NodeRules(found, lambda: ()).bounds == found.bounds
    one = bounded(
        giant(2, external=1, ranges=9, balanced=1), part(endpoints(9), 2), bounds=found.bounds
    )
    assert sum(frontends(one).values()) == 1
    assert len(used(one)) == 2


def test_a_service_within_the_bounds_is_the_same_value() -> None:
    big, parts = giant(10, external=2, balanced=2), (part(endpoints(1), 10),)
    found = within_bounds(big, parts, HOSTNAME, SMALL)
    assert found.service is big
    assert found.slices is parts
    assert found.problems == ()


def test_source_ranges_beyond_the_bound_admit_no_client() -> None:
    found = bounded(giant(5, balanced=2, ranges=40))
    assert found.service.source_ranges == giant(1, ranges=5).source_ranges
    (problem,) = found.problems
    assert "35 of 40 admit no client" in problem.message
    # Never none at all, which would admit every client.
    tight = msgspec.structs.replace(SMALL, source_ranges=1)
    assert len(bounded(giant(5, balanced=2, ranges=40), bounds=tight).service.source_ranges) == 1


def test_the_ranges_of_a_services_own_addresses_are_bounded_too() -> None:
    big = giant(1, balanced=40, ranges=1)
    lost = big.load_balancer_ips[7:]
    big = msgspec.structs.replace(big, external_ips=lost[:5])
    found = bounded(big)
    node = msgspec.structs.replace(NODE, addresses=(address(20, 0),))
    (port,) = route_service(found.service, (), node, HOSTNAME).ports
    # Not as external IPs either, which have no source ranges.
    assert [each.address for each in port.frontends[1:]] == [*big.load_balancer_ips[:7]]
    assert "33 of 40 are not proxied" in found.problems[0].message


def used(found: Bounded) -> set[Address]:
    return {Address(b[:-2]) for port in routing(found).ports for b in port.cluster}


def test_endpoints_are_bounded_and_those_of_this_node_are_kept() -> None:
    here = [Endpoint(address(11, n), node=HOSTNAME) for n in range(7)]
    unready = [Endpoint(address(12, n), ready=False, node="node-b") for n in range(50)]
    everything = [*unready, *endpoints(500), *here]
    random.Random(1).shuffle(everything)
    found = bounded(giant(10, external=1), part(everything, 10))
    rows = sum(len(port.cluster) * len(port.frontends) for port in routing(found).ports)
    assert 900 <= rows <= 1000
    assert {each.address for each in here} <= used(found)
    assert not {each.address for each in unready} & used(found)
    (problem,) = found.problems
    assert "--max-endpoints-per-service=1000" in problem.message


def test_one_more_endpoint_displaces_one_at_most() -> None:
    big, before = giant(10, external=1), endpoints(200)
    kept = used(bounded(big, part(before, 10)))
    shuffled = random.Random(2).sample(before, len(before))
    assert used(bounded(big, part(shuffled[:90], 10), part(shuffled[90:], 10, 1))) == kept
    for number in range(200, 220):
        more = used(bounded(big, part([*before, Endpoint(address(10, number))], 10)))
        assert len(kept - more) <= 1
        assert len(more) == len(kept)


def test_one_address_in_many_slices_is_bounded_in_any_order() -> None:
    """The bound admits one address at least, but not with a port number of each slice."""
    slices = [
        msgspec.structs.replace(
            part([Endpoint(address(10, 1))], 0, number),
            ports=tuple(SlicePort(f"p{n}", TCP, Port(8000 + number)) for n in range(10)),
        )
        for number in range(200)
    ]
    found = bounded(giant(10, external=1), *slices)
    rows = sum(len(port.cluster) * len(port.frontends) for port in routing(found).ports)
    assert 900 <= rows <= 1000
    random.Random(3).shuffle(slices)
    assert routing(bounded(giant(10, external=1), *slices)) == routing(found)


def test_addresses_with_one_digest_are_chosen_in_any_order() -> None:
    # CRC-32 is linear, and the digest of this number is that of 0: each pair has one digest.
    size, same = Family.IPV6.bits // 8, 0x196300777
    numbers = [(0xFD << 120) + (n << 64) + d for n in range(200) for d in (0, same)]
    pods = [Endpoint(Address(number.to_bytes(size, "big"))) for number in numbers]
    assert len({crc32(pod.address) for pod in pods}) == 200
    big = msgspec.structs.replace(giant(1), cluster_ips=(ip("fd96::1"),), families=(Family.IPV6,))
    kept = []
    for order in (pods, pods[::-1]):
        parts = msgspec.structs.replace(part(order, 1), family=Family.IPV6)
        bounds = msgspec.structs.replace(SMALL, endpoints=201)
        kept.append(used(bounded(big, parts, bounds=bounds)))
    assert kept[0] == kept[1]
    assert len(kept[0]) == 201


def test_ports_that_the_service_lacks_cost_nothing() -> None:
    found = bounded(giant(1), part(endpoints(100), 2000))
    assert [len(each.ports) for each in found.slices] == [1]
    assert found.problems == ()
    assert len(used(found)) == 100


@pytest.mark.parametrize(
    ("big", "slices"),
    [
        (giant(1000, external=264), [part(endpoints(2), 1000)]),
        (giant(100, external=20), [part(endpoints(500), 100, n) for n in range(3)]),
        (giant(2, balanced=20, ranges=5000), [part(endpoints(1), 2)]),
    ],
    ids=["frontends", "endpoints", "source ranges"],
)
def test_the_kernel_holds_a_bounded_number_of_rows(
    big: Service, slices: list[EndpointSlice]
) -> None:
    stage = Stage()
    stage.begin(service("other", 9), endpoint_slice("other", ["10.244.1.5"]))
    before = len(stage.dataplane.commits)
    stage.handle_event(big, *slices, endpoint_slice("other", ["10.244.1.6"]))
    stage.settle()
    # Another Service's change is in a commit of its own, before them.
    first, *others = stage.dataplane.commits[before:]
    assert set(first.add) == {"endpoints4", "hairpin4"}
    assert sum(map(len, first.add.values())) == 2
    assert 0 < len(others) < 100
    rows = sum(map(len, stage.dataplane.kernel.values()))
    # A row or two for each frontend and endpoint, and one for each source range.
    bounds = DEFAULT_BOUNDS
    assert rows <= 2 * bounds.frontends + bounds.endpoints + bounds.source_ranges + 3000
    assert len(stage.reported) == 1
    assert stage.metrics_by_kind()["Service"] == 1
    stage.handle_event(giant(1))
    stage.settle()
    assert stage.metrics_by_kind()["Service"] == 0


def test_an_inspected_service_is_not_searched_for_each_endpoint() -> None:
    big, slices = giant(1), part(endpoints(50), 1)
    made = route_service(big, [slices], NODE, HOSTNAME)
    ports = tuple(
        msgspec.structs.replace(
            port, cluster=Unsearchable(port.cluster), local=Unsearchable(port.local)
        )
        for port in made.ports
    )
    taken = msgspec.structs.replace(
        snapshot(big),
        slices={slices.name: slices},
        settings=Settings(HOSTNAME),
        routings={WEB: msgspec.structs.replace(made, ports=ports)},
        node_routing=NodeRouting(),
    )
    (view,) = services(taken, "shop/web").services
    assert [each.used_by for each in view.ports[0].endpoints] == ["all"] * 50


class Walked(tuple[Any, ...]):
    """A tuple that counts the walks through all tuples of this class."""

    walks = 0

    def __iter__(self) -> Iterator[Any]:
        Walked.walks += 1
        return super().__iter__()


def test_a_lost_frontend_walks_through_the_endpoints_a_few_times() -> None:
    rival = msgspec.structs.replace(
        giant(1, external=1), name=name("older"), created="2025-01-01T00:00:00Z", cluster_ips=()
    )
    big = msgspec.structs.replace(giant(1, external=1), created="2026-01-01T00:00:00Z")
    owners = FrontendOwners()
    owners.assign(rival, route_service(rival, [], NODE, HOSTNAME))
    made = route_service(big, [part(endpoints(50, HOSTNAME), 1)], NODE, HOSTNAME)
    (port,) = made.ports
    assert len(port.hairpin) == 50
    port = msgspec.structs.replace(port, cluster=Walked(port.cluster), local=Walked(port.local))
    assigned = owners.assign(big, msgspec.structs.replace(made, ports=(port,)))
    assert len(assigned.problems) == 1
    assert Walked.walks < 10
