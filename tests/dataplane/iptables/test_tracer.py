"""The rules do what Services mean: random clusters and packets, traced, against a plain statement.

The statement is nftables mode's. It differs in one thing that nobody is promised: which connections
of a pod to itself are masqueraded depends on the Service that it came by, and not on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.iptables import committed_state
from pyproxy.dataplane.iptables.fixed import Options
from pyproxy.dataplane.iptables.rules import DROP, RESET, Rule, SetMark
from pyproxy.dataplane.iptables.tracer import Machine, Way, trace
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    Masquerade,
    Packet,
    Rejected,
    RejectWith,
    Untouched,
    Verdict,
)
from pyproxy.model.address import Family, backend, family_of
from pyproxy.policy.routing import ServiceRouting
from tests.dataplane.nftables import oracle
from tests.dataplane.nftables.scenes import LOCAL, Scene, encounters

Encounter = tuple[Scene, Packet]
Plain = tuple[str, bytes, bool]
"""A verdict in this mode's terms: what, the endpoint, and whether it is masqueraded."""


def machine(scene: Scene, routings: tuple[ServiceRouting, ...], family: Family) -> Machine:
    options = Options(
        masquerade_all=scene.masquerade_all, pod_interface=scene.pod_interface.replace("*", "+")
    )
    node = NodeRouting(scene.node.pod_networks, scene.node_port_addresses)
    return Machine(committed_state.desired(options, routings, node, family), LOCAL)


def met(way: Way) -> Plain:
    if way.ended:
        return way.ended, b"", False
    if not way.translated:
        return "untouched", b"", way.masqueraded
    return "delivered", backend(way.destination, way.port), way.masqueraded


def meant(verdict: Verdict, packet: Packet, routings: tuple[ServiceRouting, ...]) -> Plain:
    match verdict:
        case Untouched():
            return "untouched", b"", False
        case Dropped():
            return "drop", b"", False
        case Rejected(reject_with=reject_with):
            return "reset" if reject_with is RejectWith.TCP_RESET else "unreachable", b"", False
        case Delivered(backend=to, masquerade=Masquerade.HAIRPIN):
            found = oracle.frontend_of(packet, routings)
            assert found is not None
            return "delivered", to, to in found[1].hairpin
        case Delivered(backend=to, masquerade=masquerade):
            return "delivered", to, masquerade is not Masquerade.NONE


def follow(encounter: Encounter) -> tuple[tuple[Way, ...], tuple[ServiceRouting, ...], Machine]:
    scene, packet = encounter
    routings = tuple(scene.routings().values())
    before = machine(scene, routings, family_of(packet.destination))
    return trace(packet, before), routings, before


@settings(max_examples=300, deadline=None)
@given(encounters())
def test_every_packet_meets_the_verdict_that_its_service_means(encounter: Encounter) -> None:
    scene, packet = encounter
    ways, routings, _ = follow(encounter)
    assert verdicts(ways) == wanted(scene, packet, routings)


def verdicts(ways: tuple[Way, ...]) -> set[Plain]:
    """What may become of a packet; endpoints share evenly, to the kernel's precision."""
    shares: dict[Plain, Fraction] = {}
    for way in ways:
        shares[met(way)] = shares.get(met(way), Fraction(0)) + way.probability
    even = Fraction(1, len(shares))
    assert sum(shares.values()) == 1
    assert all(abs(share - even) < Fraction(1, 1 << 29) for share in shares.values())
    return set(shares)


def wanted(scene: Scene, packet: Packet, routings: tuple[ServiceRouting, ...]) -> set[Plain]:
    return {meant(verdict, packet, routings) for verdict in oracle.wanted(packet, scene, routings)}


Fault = Callable[[Rule], bool]
FAULTS: dict[str, Fault] = {
    "nothing is masqueraded": lambda rule: isinstance(rule.target, SetMark) and rule.target.on,
    "the node's own packets are anybody's": lambda rule: rule.from_here,
    "nothing is refused": lambda rule: rule.target == RESET,
    "nothing is dropped": lambda rule: rule.target == DROP,
    "one endpoint is left out": lambda rule: bool(rule.share),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    def shows(encounter: Encounter) -> bool:
        scene, packet = encounter
        _, routings, before = follow(encounter)
        tables = {
            table: {
                chain: tuple(rule for rule in rules if not FAULTS[fault](rule))
                for chain, rules in chains.items()
            }
            for table, chains in before.tables.items()
        }
        faulty = trace(packet, replace(before, tables=tables))
        return {met(way) for way in faulty} != wanted(scene, packet, routings)

    find(
        encounters(),
        shows,
        settings=settings(max_examples=2000, deadline=None, phases=[Phase.generate]),
    )


@settings(max_examples=150, deadline=None)
@given(encounters(), st.data())
def test_a_client_of_a_sticky_service_returns_to_the_endpoint_it_had(
    encounter: Encounter, data: st.DataObject
) -> None:
    scene, packet = encounter
    scene = replace(
        scene, services=tuple(replace(each, affinity_timeout=60) for each in scene.services)
    )
    ways, _, before = follow((scene, packet))
    first = data.draw(st.sampled_from(ways))
    after = replace(before, seen={first.seen: {packet.source}})
    again = {met(way) for way in trace(packet, after)}
    assert bool(first.seen) is (met(first)[0] == "delivered")
    assert again == ({met(first)} if first.seen else {met(way) for way in ways})
