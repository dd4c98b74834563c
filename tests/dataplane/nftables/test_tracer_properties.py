"""Traces of random packets through random clusters have the verdict that the oracle expects.

That the properties test something is shown by planted faults: each is found in a bounded search.
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
from pyproxy.model.address import Address, Backend, Family
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
from tests.examples import examples

Mutation = Callable[[NftablesView], NftablesView]
Encounter = tuple[Scene, Packet]
Routings = dict[ObjectName, ServiceRouting]
Addresses = tuple[Address, ...]
Forget = Callable[[Table, Routings, Routings, Addresses], Table]


@settings(max_examples=examples(1000), deadline=None)
@given(encounters())
def test_every_packet_has_the_verdict_of_its_routing(encounter: Encounter) -> None:
    scene, packet = encounter
    routings = tuple(scene.routings().values())
    traced = trace(packet, machine(scene))
    assert traced.verdicts().keys() == oracle.wanted(packet, scene, routings), f"\n{traced}"
    assert oracle.fair(traced), f"\n{traced}"


@settings(max_examples=examples(250), deadline=None)
@given(encounters(), st.data())
def test_a_client_with_affinity_returns_to_its_endpoint(
    encounter: Encounter, data: st.DataObject
) -> None:
    scene, packet = encounter
    scene = with_affinity(scene)
    first = data.draw(st.sampled_from(trace(packet, machine(scene)).paths))
    again = trace(packet, machine(scene, learned_by(first)))
    if first.learned is None:
        assert not again.backends()
    else:
        assert set(again.verdicts()) == {first.verdict}


@st.composite
def changes(draw: st.DrawFn) -> tuple[Scene, Scene, Packet]:
    """Two scenes in turn with the same options, and a client that exists in both."""
    before, after = draw(scenes()), draw(scenes())
    same = {
        "node": before.node,
        "node_port_addresses": before.node_port_addresses,
        "pod_interface": before.pod_interface,
        "masquerade_all": before.masquerade_all,
    }
    after = msgspec.structs.replace(after, **same)
    if draw(st.booleans()):
        # The usual change: endpoints are added and removed, and the Services stay as they are.
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
    before = with_affinity(before)
    if draw(st.integers(0, 3)):
        after = with_affinity(after)
    return before, after, draw(packets(tuple(before.routings().values())))


@settings(max_examples=examples(400), deadline=None)
@given(changes(), st.booleans())
def test_no_client_returns_to_an_endpoint_that_is_not_allowed(
    change: tuple[Scene, Scene, Packet], restarted: bool
) -> None:
    assert held_wrongly(change, forget_wholly if restarted else forget_partly) is None


@settings(max_examples=examples(150), deadline=None)
@given(encounters())
def test_a_change_keeps_the_affinities_that_it_allows(encounter: Encounter) -> None:
    scene, packet = encounter
    scene = with_affinity(scene)
    routings = scene.undivided()
    for path in trace(packet, machine(scene)).paths:
        learned = learned_by(path)
        for forget_stale in (forget_partly, forget_wholly):
            kept = forget_stale(learned, routings, routings, scene.node_port_addresses)
            assert kept == learned


def forget_partly(learned: Table, before: Routings, after: Routings, here: Addresses) -> Table:
    """Return the affinities that a commit of changes keeps."""
    now = {name: after.get(name) for name in {**before, **after}}
    return forget(learned, loosened(before, now), here, all_known=False)


def forget_wholly(learned: Table, before: Routings, after: Routings, here: Addresses) -> Table:
    """Return the affinities that a commit after a restart keeps."""
    return forget(learned, expectations(after.values()), here, all_known=True)


def forget(learned: Table, allowed: Expectations, here: Addresses, *, all_known: bool) -> Table:
    left: Table = {}
    for family in Family:
        name = schema.AFFINITY.of(family)
        rows: Rows = learned.get(name, {})
        gone = stale(rows, family, allowed, here, all_known=all_known).get(name, {})
        if kept := {key: value for key, value in rows.items() if key not in gone}:
            left[name] = kept
    return left


def held_wrongly(change: tuple[Scene, Scene, Packet], forgetting: Forget) -> Trace | None:
    """Return the trace of a client after a change, if its affinity should have been deleted."""
    before, after, packet = change
    new = after.routings()
    for path in trace(packet, machine(before)).paths:
        learned = forgetting(
            learned_by(path), before.undivided(), after.undivided(), before.node_port_addresses
        )
        again = trace(packet, machine(after, learned))
        if again.verdicts().keys() <= oracle.wanted(packet, after, new.values()):
            continue
        if not again.backends() <= endpoints_here(packet, new):
            return again
    return None


def endpoints_here(packet: Packet, routings: Routings) -> frozenset[Backend]:
    """Return the endpoints that an internal client may keep when only topology hints changed.

    An affinity of a frontend with policy Local does not tell an internal client from an external
    one. Hints move only internal clients away from an endpoint on the node.
    """
    found = oracle.frontend_of(packet, routings.values())
    if found is None or found[2].use is not Use.SPLIT:
        return frozenset()
    return frozenset(found[1].local)


def with_affinity(scene: Scene) -> Scene:
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
    "all clients masqueraded": other_options(masquerade_all=True),
    "no client masqueraded": other_options(pod_interface="", pod_families=frozenset()),
    "a missing hairpin": without(nft.HAIRPIN),
    "an ignored source range": without(nft.SOURCE_RANGE_FRONTENDS),
    "source ranges that admit no client": without(nft.SOURCES),
    "a swapped family": swap_families,
    "a swapped family in one verdict": retarget(swap_verdicts),
    "pods that are taken for strangers": without(nft.PODS),
    "internal clients taken for external ones": without(schema.INTERNAL_SERVICES),
    "frontends that are not refused": without(nft.NO_ENDPOINT_SERVICES),
    "ports without a Service that are not rejected": without(nft.CLUSTER_IPS),
}

SEARCH = settings(
    max_examples=1500, deadline=None, database=None, derandomize=True, phases=[Phase.generate]
)


def disagrees(encounter: Encounter, mutate: Mutation) -> bool:
    scene, packet = encounter
    routings = tuple(scene.routings().values())
    traced = trace(packet, mutate(machine(scene)))
    wanted = oracle.wanted(packet, scene, routings)
    return traced.verdicts().keys() != wanted or not oracle.fair(traced)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    found = find(encounters(), lambda each: disagrees(each, FAULTS[fault]), settings=SEARCH)
    assert not disagrees(found, lambda held: held)


def test_a_planted_stale_affinity_is_found() -> None:
    def forget_nothing(learned: Table, before: Routings, after: Routings, here: Addresses) -> Table:
        return learned

    def is_held(change: tuple[Scene, Scene, Packet]) -> bool:
        return held_wrongly(change, forget_nothing) is not None

    found = find(changes(), is_held, settings=SEARCH)
    assert held_wrongly(found, forget_partly) is None


def test_no_fault_is_found_where_none_is_planted() -> None:
    few = settings(SEARCH, max_examples=100)
    with pytest.raises(NoSuchExample):
        find(encounters(), lambda each: disagrees(each, lambda held: held), settings=few)
