"""The tracer over random clusters and packets, compared with the oracle of nftables mode.

It differs in one detail that the API leaves open: whether a pod's connection to itself is
masqueraded depends on the Service that it used, and not on all Services.
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
from pyproxy.dataplane.iptables.base_rules import IptablesOptions
from pyproxy.dataplane.iptables.rules import DROP, RESET, Rule, SetMark
from pyproxy.dataplane.iptables.tracer import Path, TraceState, trace
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
from tests.examples import examples

Encounter = tuple[Scene, Packet]
Plain = tuple[str, bytes, bool]
"""A verdict: its name, the endpoint, and whether the packet is masqueraded."""


def kernel_state(scene: Scene, routings: tuple[ServiceRouting, ...], family: Family) -> TraceState:
    options = IptablesOptions(
        masquerade_all=scene.masquerade_all, pod_interface=scene.pod_interface.replace("*", "+")
    )
    node = NodeRouting(scene.node.pod_networks, scene.node_port_addresses)
    return TraceState(committed_state.compile_all(options, routings, node, family), LOCAL)


def plain(path: Path) -> Plain:
    if path.ended:
        return path.ended, b"", False
    if not path.translated:
        return "untouched", b"", path.masqueraded
    return "delivered", backend(path.destination, path.port), path.masqueraded


def expected(verdict: Verdict, packet: Packet, routings: tuple[ServiceRouting, ...]) -> Plain:
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


def trace_encounter(
    encounter: Encounter,
) -> tuple[tuple[Path, ...], tuple[ServiceRouting, ...], TraceState]:
    scene, packet = encounter
    routings = tuple(scene.routings().values())
    undivided = tuple(scene.undivided().values())
    before = kernel_state(scene, undivided, family_of(packet.destination))
    return trace(packet, before), routings, before


@settings(max_examples=examples(300), deadline=None)
@given(encounters())
def test_every_packet_gets_the_verdict_of_its_service(encounter: Encounter) -> None:
    scene, packet = encounter
    paths, routings, _ = trace_encounter(encounter)
    assert verdicts(paths) == wanted(scene, packet, routings)


def verdicts(paths: tuple[Path, ...]) -> set[Plain]:
    """The possible verdicts; endpoints are picked evenly, to the kernel's precision."""
    shares: dict[Plain, Fraction] = {}
    for path in paths:
        shares[plain(path)] = shares.get(plain(path), Fraction(0)) + path.probability
    even = Fraction(1, len(shares))
    assert sum(shares.values()) == 1
    assert all(abs(share - even) < Fraction(1, 1 << 29) for share in shares.values())
    return set(shares)


def wanted(scene: Scene, packet: Packet, routings: tuple[ServiceRouting, ...]) -> set[Plain]:
    return {
        expected(verdict, packet, routings) for verdict in oracle.wanted(packet, scene, routings)
    }


Fault = Callable[[Rule], bool]
FAULTS: dict[str, Fault] = {
    "nothing is masqueraded": lambda rule: isinstance(rule.target, SetMark) and rule.target.on,
    "packets of the node itself are not recognised": lambda rule: rule.from_here,
    "nothing is rejected": lambda rule: rule.target == RESET,
    "nothing is dropped": lambda rule: rule.target == DROP,
    "one endpoint is left out": lambda rule: bool(rule.share),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    def differs(encounter: Encounter) -> bool:
        scene, packet = encounter
        _, routings, before = trace_encounter(encounter)
        tables = {
            table: {
                chain: tuple(rule for rule in rules if not FAULTS[fault](rule))
                for chain, rules in chains.items()
            }
            for table, chains in before.tables.items()
        }
        faulty = trace(packet, replace(before, tables=tables))
        return {plain(path) for path in faulty} != wanted(scene, packet, routings)

    find(
        encounters(),
        differs,
        settings=settings(max_examples=2000, deadline=None, phases=[Phase.generate]),
    )


@settings(max_examples=examples(150), deadline=None)
@given(encounters(), st.data())
def test_a_client_with_session_affinity_returns_to_its_endpoint(
    encounter: Encounter, data: st.DataObject
) -> None:
    scene, packet = encounter
    scene = replace(
        scene, services=tuple(replace(each, affinity_timeout=60) for each in scene.services)
    )
    paths, _, before = trace_encounter((scene, packet))
    first = data.draw(st.sampled_from(paths))
    after = replace(before, seen={first.seen: {packet.source}})
    again = {plain(path) for path in trace(packet, after)}
    assert bool(first.seen) is (plain(first)[0] == "delivered")
    assert again == ({plain(first)} if first.seen else {plain(path) for path in paths})
