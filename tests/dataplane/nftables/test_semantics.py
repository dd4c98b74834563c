"""The rows do what Services mean: random clusters and packets, traced, against a plain statement.

And the statement is no empty one: each of five planted faults is found within a bounded search.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from pyproxy.dataplane.nft import schema as nft
from pyproxy.dataplane.nft.schema import Rows, SetKind, Table
from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.affinity import Expectations, expectations, loosened, stale
from pyproxy.dataplane.nftables.tracer import NftablesView, TablePath, Trace, trace
from pyproxy.dataplane.packets import Packet
from pyproxy.model.address import Backend, Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Tag
from pyproxy.policy.routing import ServiceRouting, Use
from tests.dataplane.nftables import oracle
from tests.dataplane.nftables.scenes import (
    Scene,
    encounters,
    machine,
    packets,
    scenes,
)

Mutation = Callable[[NftablesView], NftablesView]
Encounter = tuple[Scene, Packet]
Routings = dict[ObjectName, ServiceRouting]
Forget = Callable[[Table, Routings, Routings], Table]


@settings(max_examples=1000, deadline=None)
@given(encounters())
def test_every_packet_meets_the_verdict_that_its_service_means(encounter: Encounter) -> None:
    scene, packet = encounter
    routings = tuple(scene.routings().values())
    traced = trace(packet, machine(scene, routings))
    assert traced.verdicts().keys() == oracle.wanted(packet, scene, routings), f"\n{traced}"
    assert oracle.fair(traced), f"\n{traced}"


@settings(max_examples=250, deadline=None)
@given(encounters(), st.data())
def test_a_client_of_a_sticky_service_returns_to_the_endpoint_it_had(
    encounter: Encounter, data: st.DataObject
) -> None:
    scene, packet = encounter
    scene = sticky(scene)
    routings = tuple(scene.routings().values())
    first = data.draw(st.sampled_from(trace(packet, machine(scene, routings)).paths))
    again = trace(packet, machine(scene, routings, learned_by(first)))
    if first.learned is None:
        assert not again.backends()
    else:
        assert set(again.verdicts()) == {first.verdict}


@st.composite
def changes(draw: st.DrawFn) -> tuple[Scene, Scene, Packet]:
    """Two scenes in turn, configured alike, and somebody who is there in both."""
    before, after = draw(scenes()), draw(scenes())
    same = {
        "node": before.node,
        "node_port_addresses": before.node_port_addresses,
        "pod_interface": before.pod_interface,
        "masquerade_all": before.masquerade_all,
    }
    after = msgspec.structs.replace(after, **same)
    if draw(st.booleans()):
        # The usual change: endpoints come and go, and the Services stay as they are.
        after = msgspec.structs.replace(
            before,
            slices=tuple(
                msgspec.structs.replace(
                    each,
                    endpoints=tuple(end for end in each.endpoints if draw(st.integers(0, 2))),
                )
                for each in before.slices
            ),
        )
    before = sticky(before)
    if draw(st.integers(0, 3)):
        after = sticky(after)
    return before, after, draw(packets(tuple(before.routings().values())))


@settings(max_examples=400, deadline=None)
@given(changes(), st.booleans())
def test_nobody_is_held_at_an_endpoint_that_may_serve_him_no_more(
    change: tuple[Scene, Scene, Packet], restarted: bool
) -> None:
    assert held_wrongly(change, forget_wholly if restarted else forget_partly) is None


@settings(max_examples=150, deadline=None)
@given(encounters())
def test_nobody_is_let_go_for_a_change_that_does_not_concern_him(encounter: Encounter) -> None:
    scene, packet = encounter
    scene = sticky(scene)
    routings = scene.routings()
    for path in trace(packet, machine(scene, tuple(routings.values()))).paths:
        learned = learned_by(path)
        assert forget_partly(learned, routings, routings) == learned
        assert forget_wholly(learned, routings, routings) == learned


def forget_partly(learned: Table, before: Routings, after: Routings) -> Table:
    """What a commit of changes does with the learned elements."""
    now = {name: after.get(name) for name in {**before, **after}}
    return forget(learned, loosened(before, now), all_known=False)


def forget_wholly(learned: Table, before: Routings, after: Routings) -> Table:
    """What a commit after a restart does with them."""
    return forget(learned, expectations(after.values()), all_known=True)


def forget(learned: Table, allowed: Expectations, *, all_known: bool) -> Table:
    left: Table = {}
    for family in Family:
        name = schema.AFFINITY.of(family)
        rows: Rows = learned.get(name, {})
        gone = stale(rows, family, allowed, all_known=all_known).get(name, {})
        if kept := {key: value for key, value in rows.items() if key not in gone}:
            left[name] = kept
    return left


def held_wrongly(change: tuple[Scene, Scene, Packet], forgetting: Forget) -> Trace | None:
    """The trace of a client who came back after a change, if it is one that must not be."""
    before, after, packet = change
    old, new = before.routings(), after.routings()
    for path in trace(packet, machine(before, tuple(old.values()))).paths:
        learned = forgetting(learned_by(path), old, new)
        again = trace(packet, machine(after, tuple(new.values()), learned))
        if again.verdicts().keys() <= oracle.wanted(packet, after, new.values()):
            continue
        if not again.backends() <= endpoints_here(packet, new):
            return again
    return None


def endpoints_here(packet: Packet, routings: Routings) -> frozenset[Backend]:
    """Where somebody may stay who could not be told from an outsider when hints changed.

    An entry of a frontend with policy Local does not say whom it was for, and hints, which move
    pods and the node itself away from an endpoint that serves, say nothing about outsiders.
    """
    found = oracle.frontend_of(packet, routings.values())
    if found is None or found[2].use is not Use.SPLIT:
        return frozenset()
    return frozenset(found[1].local)


def sticky(scene: Scene) -> Scene:
    return msgspec.structs.replace(
        scene,
        services=tuple(
            msgspec.structs.replace(service, affinity_timeout=10800) for service in scene.services
        ),
    )


def learned_by(path: TablePath) -> Table:
    element = path.learned
    return {element.set_name: {element.key: element.value}} if element else {}


def without(*kinds: SetKind) -> Mutation:
    def mutate(held: NftablesView) -> NftablesView:
        names = {kind.of(family) for kind in kinds for family in Family}
        kept = {name: rows for name, rows in held.table.items() if name not in names}
        return msgspec.structs.replace(held, table=kept)

    return mutate


def retarget(change: Callable[[str], str]) -> Mutation:
    def mutate(held: NftablesView) -> NftablesView:
        table = {
            name: {
                key: Tag(change(value.target), value.comment) if isinstance(value, Tag) else value
                for key, value in rows.items()
            }
            for name, rows in held.table.items()
        }
        return msgspec.structs.replace(held, table=table)

    return mutate


def mask_everything(target: str) -> str:
    return f"masq-{target}" if target.startswith(("cluster4", "cluster6")) else target


def swap_families(held: NftablesView) -> NftablesView:
    swap = {"4": "6", "6": "4"}
    table = {name[:-1] + swap[name[-1]]: rows for name, rows in held.table.items()}
    return msgspec.structs.replace(held, table=table)


def swap_verdicts(target: str) -> str:
    return target.translate(str.maketrans("46", "64")) if target.startswith("split") else target


def other_options(**fields: object) -> Mutation:
    def mutate(held: NftablesView) -> NftablesView:
        options = msgspec.structs.replace(held.options, **fields)
        return msgspec.structs.replace(held, options=options)

    return mutate


FAULTS = {
    "a masquerade that is missing": retarget(lambda target: target.removeprefix("masq-")),
    "a masquerade too many": retarget(mask_everything),
    "a masquerade for everybody": other_options(masquerade_all=True),
    "a masquerade for nobody": other_options(pod_interface="", pod_families=frozenset()),
    "a missing hairpin": without(nft.HAIRPIN),
    "an ignored source range": without(nft.SOURCE_RANGE_FRONTENDS),
    "source ranges that let nobody in": without(nft.SOURCES),
    "a swapped family": swap_families,
    "a swapped family in one verdict": retarget(swap_verdicts),
    "pods that are taken for strangers": without(nft.PODS),
    "insiders that are taken for outsiders": without(schema.INTERNAL_SERVICES),
    "frontends that are not refused": without(nft.NO_ENDPOINT_SERVICES),
    "ports that nobody serves and nobody refuses": without(nft.CLUSTER_IPS),
}

SEARCH = settings(
    max_examples=1500, deadline=None, database=None, derandomize=True, phases=[Phase.generate]
)


def disagrees(encounter: Encounter, mutate: Mutation) -> bool:
    scene, packet = encounter
    routings = tuple(scene.routings().values())
    traced = trace(packet, mutate(machine(scene, routings)))
    wanted = oracle.wanted(packet, scene, routings)
    return traced.verdicts().keys() != wanted or not oracle.fair(traced)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    found = find(encounters(), lambda each: disagrees(each, FAULTS[fault]), settings=SEARCH)
    assert not disagrees(found, lambda held: held)


def test_a_planted_stale_affinity_is_found() -> None:
    def forget_nothing(learned: Table, before: Routings, after: Routings) -> Table:
        return learned

    def is_held(change: tuple[Scene, Scene, Packet]) -> bool:
        return held_wrongly(change, forget_nothing) is not None

    found = find(changes(), is_held, settings=SEARCH)
    assert held_wrongly(found, forget_partly) is None


def test_a_search_for_a_fault_that_is_not_there_ends() -> None:
    few = settings(SEARCH, max_examples=100)
    with pytest.raises(NoSuchExample):
        find(encounters(), lambda each: disagrees(each, lambda held: held), settings=few)
