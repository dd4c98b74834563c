"""A small change waits for a bounded number of rows, whichever other objects change."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.dataplane.interface import Failure, StepLimits
from pyproxy.model.address import Family, Port, Protocol
from pyproxy.model.events import Delete, Event, Upsert
from pyproxy.model.objects import (
    Endpoint,
    EndpointSlice,
    Kind,
    ObjectName,
    Service,
    ServicePort,
    SlicePort,
)
from tests.agent.objects import NODE, PlannedTable, Stage
from tests.builders import ip

ROWS = 60
"""Rows of a step here, so that a Service of a few hundred rows is a giant."""

ENDPOINTS = 6
NAMESPACES = ("a", "b")
NAMES = [ObjectName(space, name) for space in NAMESPACES for name in ("one", "two", "three")]

STEPS = 2 * (len(NAMESPACES) + 1)
"""Steps that a small change waits for: one Service of each namespace, each after large work."""


def service(name: ObjectName, ports: int, addresses: range, *, created: str, how: int) -> Service:
    """Return a Service with external IPs, some of which other Services claim too."""
    return Service(
        name,
        tuple(
            ServicePort(f"p{n}", Protocol.TCP, Port(80 + (n + how) % ports), Port(0))
            for n in range(ports)
        ),
        (ip(f"10.96.1.{NAMES.index(name) + 1}"),),
        tuple(ip(f"192.0.2.{n + 1}") for n in addresses),
        affinity_timeout=10 * (how % 3),
        families=(Family.IPV4,),
        created=created,
    )


def endpoints(name: ObjectName, ports: int, count: int) -> EndpointSlice:
    return EndpointSlice(
        ObjectName(name.namespace, f"{name.name}-0"),
        name,
        Family.IPV4,
        tuple(SlicePort(f"p{n}", Protocol.TCP, Port(8080)) for n in range(ports)),
        tuple(Endpoint(ip(f"10.244.1.{n + 1}")) for n in range(count)),
    )


def small(number: int) -> Service:
    """Return a Service of another tenant, in a namespace of its own."""
    return Service(
        ObjectName("tenant", f"small-{number}"),
        (ServicePort("http", Protocol.TCP, Port(80)),),
        (ip(f"10.96.9.{number + 1}"),),
        families=(Family.IPV4,),
    )


services = st.builds(
    lambda name, ports, first, count, created, how: Upsert(
        service(name, ports, range(first, first + count), created=created, how=how)
    ),
    st.sampled_from(NAMES),
    st.sampled_from([1, 2, 8]),
    st.integers(0, 8),
    st.sampled_from([0, 2, 8]),
    st.sampled_from(["2026-01-01", "2026-02-01"]),
    st.integers(0, 3),
)
slices = st.builds(
    lambda name, ports, count: Upsert(endpoints(name, ports, count)),
    st.sampled_from(NAMES),
    st.sampled_from([1, 8]),
    st.integers(0, ENDPOINTS),
)
deletions = st.one_of(
    st.builds(Delete, st.just(Kind.SERVICE), st.sampled_from(NAMES)),
    st.builds(
        lambda name: Delete(Kind.ENDPOINT_SLICE, ObjectName(name.namespace, f"{name.name}-0")),
        st.sampled_from(NAMES),
    ),
)
nodes = st.builds(
    lambda zone: Upsert(msgspec.structs.replace(NODE, zone=zone)), st.sampled_from(["x", "y"])
)
SYNC = "sync"
steps = st.lists(st.one_of(services, slices, deletions, nodes, st.just(SYNC)), max_size=40)


def advance(stage: Stage) -> None:
    """Make one step, if any is due, at the time at which it is due."""
    due = stage.agent.due()
    if due is not None:
        stage.clock.now = max(stage.clock(), due)
        stage.agent.sync()


def rows_until(stage: Stage, is_programmed: Callable[[], bool]) -> int:
    """Make steps until a change is programmed; return the rows written, its own among them."""
    before = len(stage.dataplane.commits)
    for _ in range(STEPS):
        due = stage.agent.due()
        # It never waits for the clock, as large changes may.
        assert due is not None
        assert due <= stage.clock()
        stage.agent.sync()
        if is_programmed():
            deltas = stage.dataplane.commits[before:]
            return sum(len(rows) for each in deltas for side in (each.remove, each.add)
                       for rows in side.values())  # fmt: skip
    raise AssertionError(f"a small change is not programmed after {STEPS} steps")


@given(steps)
@settings(max_examples=40, deadline=None)
def test_a_small_change_waits_for_a_bounded_number_of_rows(steps: list[Event | str]) -> None:
    stage = Stage(step_limits=StepLimits(ROWS, large=ROWS))
    stage.begin()
    number = 0
    for step in steps:
        if isinstance(step, str):
            advance(stage)
            continue
        stage.agent.handle_event(step)
        stage.agent.handle_event(Upsert(small(number), stage.clock()))
        key = small(number).cluster_ips[0]
        rows = rows_until(
            stage,
            lambda key=key: any(  # type: ignore[misc]
                row.startswith(key) for row in stage.dataplane.kernel["no-endpoint-services4"]
            ),
        )
        # A step ends with the Service or part that fills it.
        assert rows <= STEPS * 3 * ROWS
        number += 1
    stage.settle()

    # The steps end where one sync of all would: at the state that the objects alone decide.
    fresh = Stage()
    state = stage.agent.cluster_state
    fresh.node = state.node or NODE
    fresh.begin(*state.services.values(), *state.slices.values())
    assert stage.dataplane.kernel == fresh.dataplane.kernel
    assert stage.metrics_by_kind() == fresh.metrics_by_kind()
    assert stage.recorder.programmed == fresh.recorder.programmed


def test_a_giant_is_written_in_steps_between_which_small_changes_are() -> None:
    stage = Stage(step_limits=StepLimits(ROWS, large=ROWS))
    stage.begin()
    giant = service(NAMES[0], 8, range(40), created="", how=0)
    stage.handle_event(giant, endpoints(NAMES[0], 8, ENDPOINTS))
    sizes = []
    for number in range(60):
        stage.handle_event(small(number))
        before = len(stage.dataplane.commits)
        advance(stage)
        advance(stage)
        sizes += [
            sum(len(rows) for rows in delta.add.values())
            for delta in stage.dataplane.commits[before:]
        ]
    assert max(sizes) <= 2 * ROWS
    assert sum(sizes) > 8 * 41 * ENDPOINTS


def test_a_change_that_moves_many_frontends_waits_like_a_large_one() -> None:
    """They move in one transaction, and repeated all the time this would delay others."""
    addresses = [ip(f"192.0.2.{n + 1}") for n in range(40)]
    losers = [
        msgspec.structs.replace(small(n), external_ips=(address,), created="2026-02-01")
        for n, address in enumerate(addresses)
    ]
    taker = msgspec.structs.replace(small(40), external_ips=tuple(addresses), created="2026-01-01")
    released = msgspec.structs.replace(taker, external_ips=())
    stage = Stage(step_limits=StepLimits(ROWS, large=ROWS))
    stage.begin(taker, *losers)
    pending = stage.agent.cluster_state.pending
    lanes = []
    for version in (released, taker, released, small(40), taker):
        stage.handle_event(version)
        lanes.append(pending.has_large)
        stage.settle()
    # Once it has moved none, it counts as small again.
    assert lanes == [False, True, True, True, False]


def test_a_giant_that_changes_all_the_time_gets_a_quarter_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(step_limits=StepLimits(ROWS, large=ROWS))
    stage.begin()
    commit = stage.dataplane.commit
    spent: dict[bool, float] = {True: 0.0, False: 0.0}

    def slow(plan: PlannedTable) -> tuple[Failure, ...]:
        took = 0.05 if any(name.namespace == "a" for name in plan.services) else 0.001
        stage.clock.now += took
        return commit(plan)

    monkeypatch.setattr(stage.dataplane, "commit", slow)
    number, began = 0, stage.clock()
    while stage.clock() < began + 60:
        number += 1
        affinity = service(NAMES[0], 4, range(10), created="", how=number)
        stage.handle_event(affinity, endpoints(NAMES[0], 4, ENDPOINTS))
        next_event = stage.clock() + 0.1
        while (due := stage.agent.due()) is not None and max(due, stage.clock()) < next_event:
            stage.clock.now = max(stage.clock(), due)
            before = stage.clock()
            stage.agent.sync()
            spent[stage.clock() - before > 0.01] += stage.clock() - before
        stage.clock.now = max(stage.clock(), next_event)
    # A quarter, and the four seconds that a quiet agent spends at once.
    assert 15 < spent[True] <= 60 / 4 + 4 + 0.05
