"""The tree leads every packet to its frontend, and more frontends add few rules to its path."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables import committed_state, services
from pyproxy.dataplane.iptables.base_rules import NAT, IptablesOptions, pods_of
from pyproxy.dataplane.iptables.rules import DROP, Chains, Jump, Rule
from pyproxy.dataplane.iptables.tracer import TraceState, trace
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
from pyproxy.xtables import kube_names
from tests.examples import examples

Place = tuple[Address, Protocol, Port]
_CLUSTER_IP = parse_address("10.255.0.1")
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


def build(places: Sequence[Place], family: Family) -> Chains:
    leaves = {number(*place): leaf(place) for place in places}
    return Tree(family, kube_names.SERVICES, kube_names.SERVICE_TREE).chains(leaves)


def matching_rule(chains: Chains, place: Place) -> Rule | None:
    """The leaf that a packet to this place matches; a tree has gotos only."""
    address, protocol, port = place
    rules = list(chains[kube_names.SERVICES])
    while rules:
        rule = rules.pop(0)
        in_destination = rule.destination is not None and address in rule.destination
        is_protocol = rule.protocol in (None, protocol)
        in_ports = rule.ports is None or rule.ports[0] <= port <= rule.ports[1]
        if in_destination and is_protocol and in_ports:
            if not isinstance(rule.target, Jump):
                return rule
            rules = list(chains[rule.target.chain])
    return None


@pytest.mark.parametrize("family", Family)
@given(data=st.data())
@settings(max_examples=examples(150), deadline=None)
def test_the_tree_finds_every_frontend_and_nothing_else(
    family: Family, data: st.DataObject
) -> None:
    places = data.draw(frontends(family))
    chains = build(places, family)
    for place in places:
        assert matching_rule(chains, place) == leaf(place)
    for place in data.draw(frontends(family)):
        assert matching_rule(chains, place) == (leaf(place) if place in places else None)
    assert all(len(chain) <= 28 for chain in chains)


@given(frontends(Family.IPV4), st.randoms(use_true_random=False))
@settings(max_examples=examples(150), deadline=None)
def test_the_tree_does_not_depend_on_the_order_of_frontends(
    places: list[Place], order: random.Random
) -> None:
    turned = list(places)
    order.shuffle(turned)
    assert build(places, Family.IPV4) == build(turned, Family.IPV4)


def test_no_set_of_frontends_exceeds_the_depth_that_nf_tables_allows() -> None:
    nested = [
        (Address((1 << bit).to_bytes(16, "big")), Protocol.TCP, Port(1)) for bit in range(128)
    ]
    near = [(nested[0][0], protocol, Port(1 << bit)) for protocol in Protocol for bit in range(16)]
    spread = [(each[0], Protocol.UDP, Port(port)) for each in nested for port in range(2, 9)]
    places = list(dict.fromkeys(nested + near + spread))
    chains = build(places, Family.IPV6)
    assert depth(chains, kube_names.SERVICES) <= DEEPEST
    assert all(matching_rule(chains, place) == leaf(place) for place in places)


def depth(chains: Chains, chain: str) -> int:
    """The most nested chains below one."""
    below = [rule.target.chain for rule in chains[chain] if isinstance(rule.target, Jump)]
    return max((1 + depth(chains, each) for each in below), default=0)


def numbered(
    index: int, address: int, endpoints: int, scope: Scope, *, here: bool = False
) -> ServiceRouting:
    """A Service at this address; if that is no cluster IP, it has a cluster IP as well."""
    backends = tuple(
        Backend(bytes((10, 128, index >> 8 & 255, index & 255)) + (8080 + each).to_bytes(2, "big"))
        for each in range(endpoints)
    )
    frontend = Frontend(scope, Address(address.to_bytes(4, "big")), Port(80), Use.CLUSTER)
    inner = Frontend(Scope.CLUSTER_IP, _CLUSTER_IP, Port(index % 65535 + 1), Use.CLUSTER)
    frontends = (frontend,) if scope is Scope.CLUSTER_IP else (frontend, inner)
    port = PortRouting(
        "http", Family.IPV4, Protocol.TCP, frontends, backends, (), backends if here else ()
    )
    return ServiceRouting(ObjectName("shop", f"s{index}"), (port,))


class Cost(msgspec.Struct, frozen=True, order=True):
    """The rules that a packet meets in the tree before its frontend, and the chains it enters."""

    rules: int
    depth: int
    address: Address


def costs(chains: Chains) -> list[Cost]:
    found: list[Cost] = []
    waiting = [(kube_names.SERVICES, 0, 0)]
    while waiting:
        chain, met, depth = waiting.pop()
        for count, rule in enumerate(chains[chain], met + 1):
            assert isinstance(rule.target, Jump)
            if rule.target.chain.startswith(kube_names.SERVICE_TREE):
                waiting.append((rule.target.chain, count, depth + 1))
            elif rule.destination is not None:
                found.append(Cost(count, depth, rule.destination.address))
    return sorted(found)


def rules_met(addresses: Sequence[int], scope: Scope) -> tuple[list[int], int]:
    """Count the rules in all hooks for the best, median and worst Service; and the tree's depth.

    Each Service has ten endpoints, of which the costliest counts. They are on another node, or on
    this one with a chain of their own each. The client is the costliest of a pod, an endpoint, and
    an external client, which is masqueraded.
    """
    routings = {
        Address(address.to_bytes(4, "big")): numbered(index, address, 1, scope)
        for index, address in enumerate(addresses)
    }
    options = IptablesOptions()
    tables = committed_state.compile_all(options, routings.values(), NODE, Family.IPV4)
    ordered = [cost for cost in costs(tables[NAT]) if cost.address in routings]
    view = services.View(options, pods_of(Family.IPV4, options, NODE.pod_networks))
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
                most = max(most, *(path.rules for path in trace(packet, TraceState(tables))))
        found.append(most)
    return found, max(cost.depth for cost in ordered)


def in_order(count: int) -> Sequence[int]:
    return range(0x0A600100, 0x0A600100 + count)


def at_random(count: int) -> Sequence[int]:
    return random.Random(count).sample(range(0x0A600000, 0x0A700000), count)


@pytest.mark.parametrize("allocated", [in_order, at_random])
def test_a_first_packet_meets_at_most_40_rules_and_few_more_with_4_times_the_services(
    allocated: Callable[[int], Sequence[int]],
) -> None:
    few, shallow = rules_met(allocated(10_000), Scope.CLUSTER_IP)
    many, deep = rules_met(allocated(40_000), Scope.CLUSTER_IP)
    assert max(few) <= 40, few
    assert all(more <= 1.5 * met for met, more in zip(few, many, strict=True)), (few, many)
    assert max(shallow, deep) <= DEEPEST


def test_a_first_packet_to_an_external_address_meets_3_more_rules() -> None:
    """The rules of KUBE-EXT-, and a tree that has as many cluster IPs as well."""
    few, depth = rules_met(at_random(10_000), Scope.EXTERNAL_IP)
    assert max(few) <= 43, few
    assert depth <= DEEPEST
