"""The tree leads every packet to its frontend, and more frontends make it barely deeper."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables import committed_state, names, services
from pyproxy.dataplane.iptables.fixed import NAT, Options, pods
from pyproxy.dataplane.iptables.rules import DROP, Chains, Jump, Rule
from pyproxy.dataplane.iptables.tracer import Machine, trace
from pyproxy.dataplane.iptables.tree import DEEPEST, Tree, number
from pyproxy.dataplane.packets import Packet
from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Network,
    Port,
    Protocol,
    address_text,
    parse_address,
    parse_network,
)
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

Place = tuple[Address, Protocol, Port]
_INNER = parse_address("10.255.0.1")
NODE = NodeRouting((parse_network("10.128.0.0/9"),))


def frontends(family: Family) -> st.SearchStrategy[list[Place]]:
    size = family.bits // 8
    near = st.integers(0, 255).map(lambda low: Address(bytes(size - 2) + bytes((1, low))))
    far = st.binary(min_size=size, max_size=size).map(Address)
    few = st.sampled_from([Address(bytes(size - 1) + b"\x07"), Address(b"\xff" * size)])
    ports = st.integers(1, 65535).map(Port)
    place = st.tuples(near | far | few, st.sampled_from(Protocol), ports)
    return st.lists(place, max_size=60, unique=True)


def leaf(place: Place) -> Rule:
    address, protocol, port = place
    network = Network(address, len(address) * 8)
    return Rule(destination=network, protocol=protocol, ports=(port, port), target=DROP)


def grown(places: Sequence[Place], family: Family) -> Chains:
    leaves = {number(*place): leaf(place) for place in places}
    return Tree(family, names.SERVICES, names.SERVICE_TREE).chains(leaves)


def taken(chains: Chains, place: Place) -> Rule | None:
    """The rule that takes a packet to this place; gotos alone lead through a tree."""
    address, protocol, port = place
    rules = list(chains[names.SERVICES])
    while rules:
        rule = rules.pop(0)
        at_home = rule.destination is not None and address in rule.destination
        spoken = rule.protocol in (None, protocol)
        asked = rule.ports is None or rule.ports[0] <= port <= rule.ports[1]
        if at_home and spoken and asked:
            if not isinstance(rule.target, Jump):
                return rule
            rules = list(chains[rule.target.chain])
    return None


@pytest.mark.parametrize("family", Family)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_frontend_is_found_and_nothing_else(family: Family, data: st.DataObject) -> None:
    places = data.draw(frontends(family))
    chains = grown(places, family)
    for place in places:
        assert taken(chains, place) == leaf(place)
    for place in data.draw(frontends(family)):
        assert taken(chains, place) == (leaf(place) if place in places else None)
    assert all(len(chain) <= 28 for chain in chains)


@given(frontends(Family.IPV4), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_order_in_which_frontends_came_does_not_matter(
    places: list[Place], order: random.Random
) -> None:
    turned = list(places)
    order.shuffle(turned)
    assert grown(places, Family.IPV4) == grown(turned, Family.IPV4)


def test_however_frontends_lie_the_kernel_takes_the_tree() -> None:
    nested = [
        (Address((1 << bit).to_bytes(16, "big")), Protocol.TCP, Port(1)) for bit in range(128)
    ]
    near = [(nested[0][0], protocol, Port(1 << bit)) for protocol in Protocol for bit in range(16)]
    spread = [(each[0], Protocol.UDP, Port(port)) for each in nested for port in range(2, 9)]
    places = list(dict.fromkeys(nested + near + spread))
    chains = grown(places, Family.IPV6)
    assert depth(chains, names.SERVICES) <= DEEPEST
    assert all(taken(chains, place) == leaf(place) for place in places)


def depth(chains: Chains, chain: str) -> int:
    """Chains that a packet may go through below one."""
    below = [rule.target.chain for rule in chains[chain] if isinstance(rule.target, Jump)]
    return max((1 + depth(chains, each) for each in below), default=0)


def numbered(
    index: int, address: int, endpoints: int, scope: Scope, *, here: bool = False
) -> ServiceRouting:
    """A Service of this number at this address; one of another scope has a cluster IP besides."""
    backends = tuple(
        Backend(bytes((10, 128, index >> 8 & 255, index & 255)) + (8080 + each).to_bytes(2, "big"))
        for each in range(endpoints)
    )
    frontend = Frontend(scope, Address(address.to_bytes(4, "big")), Port(80), Use.CLUSTER)
    inner = Frontend(Scope.CLUSTER_IP, _INNER, Port(index % 65535 + 1), Use.CLUSTER)
    frontends = (frontend,) if scope is Scope.CLUSTER_IP else (frontend, inner)
    port = PortRouting(
        "http", Family.IPV4, Protocol.TCP, frontends, backends, (), backends if here else ()
    )
    return ServiceRouting(ObjectName("shop", f"s{index}"), (port,))


class Cost(msgspec.Struct, frozen=True, order=True):
    """What a packet meets in the tree until its frontend, and through how many chains it goes."""

    rules: int
    depth: int
    address: Address


def costs(chains: Chains) -> list[Cost]:
    found: list[Cost] = []
    waiting = [(names.SERVICES, 0, 0)]
    while waiting:
        chain, met, depth = waiting.pop()
        for count, rule in enumerate(chains[chain], met + 1):
            assert isinstance(rule.target, Jump)
            if rule.target.chain.startswith(names.SERVICE_TREE):
                waiting.append((rule.target.chain, count, depth + 1))
            elif rule.destination is not None:
                found.append(Cost(count, depth, rule.destination.address))
    return sorted(found)


def rules_met(addresses: Sequence[int], scope: Scope) -> tuple[list[int], int]:
    """All rules of all hooks, for the best, the median and the worst of Services, and the depth.

    Each has ten endpoints, of which the unluckiest counts. They are elsewhere, or pods of this node
    that each have a chain of their own. The client is the unluckiest of a pod, one of the
    endpoints, and somebody from elsewhere, who is masqueraded.
    """
    routings = {
        Address(address.to_bytes(4, "big")): numbered(index, address, 1, scope)
        for index, address in enumerate(addresses)
    }
    options = Options()
    tables = committed_state.desired(options, routings.values(), NODE, Family.IPV4)
    ordered = [cost for cost in costs(tables[NAT]) if cost.address in routings]
    view = services.View(options, pods(Family.IPV4, options, NODE.pod_networks))
    found = []
    for cost in (ordered[0], ordered[len(ordered) // 2], ordered[-1]):
        one = int(routings[cost.address].name.name[1:])
        most = 0
        for here in (False, True):
            ten = numbered(one, int.from_bytes(cost.address, "big"), 10, scope, here=here)
            tables[NAT] |= services.compile_service(ten, Family.IPV4, view).nat
            endpoint = address_text(Address(ten.ports[0].cluster[0][:-2]))
            clients = (("10.128.9.9", "cbr0"), (endpoint, "cbr0"), ("203.0.113.5", "eth0"))
            for source, interface in clients:
                packet = Packet(
                    parse_address(source), cost.address, Protocol.TCP, Port(80), interface
                )
                most = max(most, *(way.rules for way in trace(packet, Machine(tables))))
        found.append(most)
    return found, max(cost.depth for cost in ordered)


def in_order(count: int) -> Sequence[int]:
    return range(0x0A600100, 0x0A600100 + count)


def at_random(count: int) -> Sequence[int]:
    return random.Random(count).sample(range(0x0A600000, 0x0A700000), count)


@pytest.mark.parametrize("allocated", [in_order, at_random])
def test_a_first_packet_meets_forty_rules_at_most_and_hardly_more_among_more_services(
    allocated: Callable[[int], Sequence[int]],
) -> None:
    few, shallow = rules_met(allocated(10_000), Scope.CLUSTER_IP)
    many, deep = rules_met(allocated(40_000), Scope.CLUSTER_IP)
    assert max(few) <= 40, few
    assert all(more <= 1.5 * met for met, more in zip(few, many, strict=True)), (few, many)
    assert max(shallow, deep) <= DEEPEST


def test_at_an_external_address_it_meets_three_more() -> None:
    """Those of KUBE-EXT-, and as many cluster IPs are in the tree besides."""
    few, depth = rules_met(at_random(10_000), Scope.EXTERNAL_IP)
    assert max(few) <= 43, few
    assert depth <= DEEPEST
