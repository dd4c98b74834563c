"""A large plan in batches: each Service changes as a whole, and the result is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.diff import Delta, apply, diff
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.schema import FRONTEND, Table
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.batches import packed_batches, row_count, split
from pyproxy.dataplane.nftables.compile import add_service, compile_all
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.dataplane.nftables.schema import BY_NAME, NODE_PORT, NODE_PORT_KEY
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation
from pyproxy.policy.routing import ServiceRouting
from tests.dataplane.nftables.scenes import Scene, compiled, scenes
from tests.dataplane.nftables.test_dataplane import held, misfit, numbered, programming

NETWORK = NodeRouting()


def planned(before: Scene, after: Scene, limit: int) -> tuple[Table, NftablesPlan, int]:
    old, new = before.undivided(), after.undivided()
    held = compiled(tuple(old.values()), before.rules)
    wanted = compiled(tuple(new.values()), after.rules)
    services: dict[ObjectName, ServiceRouting | None] = {name: new.get(name) for name in old | new}
    delta = diff(held, wanted)
    return held, NftablesPlan(delta, services, Counter(), NftablesOptions(), ("cluster4-1",)), limit


def first(wanted: Scene, limit: int) -> tuple[Table, NftablesPlan, int]:
    routings = wanted.undivided()
    after = compile_all(routings.values(), wanted.rules, limit)
    services = dict[ObjectName, ServiceRouting | None](routings)
    delta = diff({}, after.table)
    chains = ("cluster4-1",)
    plan = NftablesPlan(
        delta,
        services,
        after.shared,
        NftablesOptions(),
        chains,
        boundaries=after.boundaries,
    )
    return {}, plan, limit


LIMITS = st.integers(1, 40)
PLANS = st.one_of(
    st.builds(planned, scenes(), scenes(), LIMITS), st.builds(first, scenes(), LIMITS)
)
"""A table, a plan for it, and the size of a batch; some tables are empty."""


def by_frontend(table: Table) -> dict[tuple[int, bytes], dict[tuple[str, bytes], object]]:
    found: dict[tuple[int, bytes], dict[tuple[str, bytes], object]] = {}
    for name, rows in table.items():
        kind, family = BY_NAME[name]
        if kind.key[:2] == NODE_PORT:
            for key, value in rows.items():
                found.setdefault((family.value, key[:NODE_PORT_KEY]), {})[name, key] = value
        if kind.key[:3] != FRONTEND:
            continue
        width = sum(field.size(family) for field in FRONTEND)
        for key, value in rows.items():
            found.setdefault((family.value, key[:width]), {})[name, key] = value
    return found


def rows_of(routing: ServiceRouting) -> Table:
    table: Table = {}
    add_service(routing, table)
    return table


@given(PLANS)
def test_all_batches_together_are_the_plan(found: tuple[Table, NftablesPlan, int]) -> None:
    state, plan, limit = found
    wanted = apply(plan.delta, state)
    batches = list(split(plan, limit))
    assert sum(map(row_count, batches)) == row_count(plan)
    for batch in batches:
        state = apply(batch.delta, state)
    assert state == wanted
    assert [each.chains for each in batches] == [plan.chains] + [()] * (len(batches) - 1)
    assert batches[-1].services == plan.services


@given(PLANS)
def test_a_service_changes_in_one_batch(
    known: tuple[Table, NftablesPlan, int],
) -> None:
    state, plan, limit = known
    then, now = by_frontend(state), by_frontend(apply(plan.delta, state))
    changed: Counter[ObjectName] = Counter()
    for part in split(plan, limit):
        earlier, state = by_frontend(state), apply(part.delta, state)
        found = by_frontend(state)
        for frontend, rows in found.items():
            assert rows in (then.get(frontend), now.get(frontend))
        for name, routing in plan.services.items():
            mine = by_frontend(rows_of(routing)) if routing else {}
            changed[name] += any(earlier.get(each) != found.get(each) for each in mine)
    assert max(changed.values(), default=0) <= 1


@given(PLANS)
def test_batches_are_packed_in_order(known: tuple[Table, NftablesPlan, int]) -> None:
    _, plan, limit = known
    with packed_batches(plan, limit) as packed:
        found = [(each.plan, list(each.writes)) for each in packed]
    assert found == [(part, list(part.messages())) for part in split(plan, limit)]


def test_a_small_plan_is_one_batch() -> None:
    plan = NftablesPlan(Delta({}, {"services4": {b"x": b""}}), {}, Counter(), NftablesOptions())
    assert list(split(plan, 1)) == [plan]


def commit(
    namespace: Namespace, plan: NftablesPlan, dataplane: NftablesDataplane
) -> tuple[int, set[ObjectName]]:
    netlink = namespace.call(Nfnetlink)
    try:
        began = read_generation(netlink.get(get_generation()))
        failures = namespace.call(lambda: dataplane.commit(plan))
        return read_generation(netlink.get(get_generation())) - began, {
            each.name for each in failures
        }
    finally:
        netlink.close()


def many(first: int, endpoints: int) -> Sequence[ServiceRouting]:
    return [numbered(number, 250, first=endpoints) for number in range(first, first + 100)]


@pytest.mark.kernel
def test_a_large_plan_is_several_transactions(namespace: Namespace) -> None:
    with programming(namespace) as dataplane:
        assert commit(namespace, dataplane.plan_full([], NETWORK), dataplane)[1] == set()
        plan = dataplane.plan_full(many(0, 0), NETWORK)
        assert commit(namespace, plan, dataplane) == (3, set())
        assert held(namespace) == compiled(many(0, 0))
        assert not dataplane.plan_full(many(0, 0), NETWORK)
        plan = dataplane.plan_full(many(50, 0), NETWORK)
        assert commit(namespace, plan, dataplane) == (3, set())
        assert held(namespace) == compiled(many(50, 0))


@pytest.mark.kernel
@pytest.mark.parametrize("place", [0, 99])
def test_a_rejected_service_is_left_out_of_all_batches(namespace: Namespace, place: int) -> None:
    wanted = list(many(0, 0))
    good = wanted[place]
    wanted[place] = misfit(good)
    rest = [each for each in wanted if each.name != good.name]
    with programming(namespace) as dataplane:
        commit(namespace, dataplane.plan_full([], NETWORK), dataplane)
        _, refused = commit(namespace, dataplane.plan_full(wanted, NETWORK), dataplane)
        assert refused == {good.name}
        assert held(namespace) == compiled(rest)
        plan = dataplane.plan_full([*rest, good], NETWORK)
        assert row_count(plan) == 252
        assert commit(namespace, plan, dataplane) == (1, set())
