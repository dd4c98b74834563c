"""Partial plans lead to the same rows as a full plan, without any needless write."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.dataplane.diff import apply, diff
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.compile import add_service, shared_rows
from pyproxy.dataplane.nftables.plan import shared_changes
from pyproxy.dataplane.nftables.tracer import NftablesView, trace
from pyproxy.dataplane.slots import place_service
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting
from tests.dataplane.nftables.scenes import LOCAL, Scene, compiled, packets, scenes
from tests.examples import examples

Routings = dict[ObjectName, ServiceRouting]


class Walker:
    """Goes from state to state as the dataplane does, without a kernel."""

    def __init__(self) -> None:
        self.table: Table = {}
        self._placed: Routings = {}
        self._shared: Counter[SharedRow] = Counter()

    def go(self, wanted: Routings) -> int:
        """Return the number of elements written."""
        before: Table = {}
        after: Table = {}
        growth: Counter[SharedRow] = Counter()
        placed: Routings = {}
        for routing in self._placed.values():
            add_service(routing, before)
            growth.subtract(shared_rows(routing))
        for name, routing in wanted.items():
            placed[name] = place_service(self._placed.get(name), routing)
            add_service(placed[name], after)
            growth.update(shared_rows(routing))
        gone, come = shared_changes(self._shared, growth)
        delta = diff(before | gone, after | come)
        self.table = apply(delta, self.table)
        self._placed = placed
        self._shared.update(growth)
        return sum(len(rows) for side in (delta.remove, delta.add) for rows in side.values())


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(scenes(), min_size=1, max_size=4), st.data())
def test_partial_plans_end_in_the_state_of_a_full_plan(
    history: list[Scene], data: st.DataObject
) -> None:
    walker = Walker()
    for scene in history:
        walker.go(scene.undivided())
    last = history[-1]
    routings = last.undivided()
    assert walker.go(routings) == 0
    leap = compiled(tuple(routings.values()))
    assert {name: rows.keys() for name, rows in walker.table.items()} == {
        name: rows.keys() for name, rows in leap.items()
    }
    for _ in range(4):
        packet = data.draw(packets(tuple(routings.values())))
        walked, leapt = (
            trace(packet, NftablesView(table, last.options, LOCAL)).verdicts().keys()
            for table in (walker.table, leap)
        )
        assert walked == leapt


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(scenes(), min_size=1, max_size=3))
def test_removing_all_services_leaves_no_row(history: list[Scene]) -> None:
    walker = Walker()
    for scene in history:
        walker.go(scene.undivided())
    walker.go({})
    assert walker.table == {}
