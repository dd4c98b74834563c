"""The phases of changes, the causes of slow ones, and the slowest that are kept."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.agent import gc_tuning
from pyproxy.agent.pending import Arrival
from pyproxy.agent.thread_times import thread_times
from pyproxy.agent.timeline import (
    PERIOD,
    REMEMBERED,
    Activities,
    Activity,
    Slowest,
    StepTimes,
    Timeline,
    phases,
)
from pyproxy.errors import StaleStateError
from pyproxy.inspect.slow_changes import CAPACITY, Phases, SlowChange, SlowChanges
from pyproxy.metrics import Metrics
from pyproxy.metrics.changes import PHASES
from pyproxy.model.events import Delete, Upsert
from pyproxy.model.objects import Kind
from tests.agent.objects import Clock, Stage
from tests.builders import endpoint_slice, name, service

SECONDS = st.floats(0, 1e3)


def change(seconds: float, ended: float = 0.0) -> SlowChange:
    return SlowChange("Service", "shop", "web", ended, seconds, Phases(*[0.0] * 7), (), 0)


def seconds_of(found: SlowChanges) -> list[float]:
    return [each.seconds for each in found.changes]


def test_metrics_and_slow_changes_name_the_same_phases() -> None:
    assert Phases.__struct_fields__ == PHASES


@given(st.lists(SECONDS, min_size=7, max_size=7), st.data())
def test_phases_add_up(parts: list[float], data: st.DataObject) -> None:
    read_at = 1000.0
    ends = [read_at]
    for part in parts[:6]:
        ends.append(ends[-1] + part)
    _, decoded_at, taken_at, began, planned, committed, ended = ends
    kernel = data.draw(st.floats(0, committed - planned))
    arrival = Arrival(Kind.SERVICE, name("web"), read_at, decoded_at, taken_at)
    found = phases(StepTimes(began, planned, committed, kernel), arrival, ended)
    assert sum(seconds for _, seconds in found.items()) == pytest.approx(ended - read_at)
    assert all(seconds >= 0 for _, seconds in found.items())


def test_a_change_passes_through_all_phases() -> None:
    stage = Stage()
    stage.begin(service("web", 1), endpoint_slice("web", ["10.244.1.5"]))

    def spend() -> None:
        stage.clock.now += 1
        stage.dataplane.kernel_seconds += 0.25

    stage.dataplane.begins = spend
    at = stage.clock.now = 2000.0
    moved = endpoint_slice("web", ["10.244.1.6"])
    stage.agent.handle_event(Upsert(moved, at - 0.5, at - 0.125))
    stage.clock.now += 3
    stage.agent.handle_event(Delete(Kind.SERVICE, name("web"), at + 3, at + 3))
    stage.agent.sync()
    (found,) = stage.agent.timeline.slowest().changes
    assert (found.kind, found.namespace, found.name) == (
        "EndpointSlice",
        moved.name.namespace,
        moved.name.name,
    )
    assert found.phases == Phases(0.375, 0.125, 3.0, 0.0, 0.75, 0.25, 0.0)
    assert (found.seconds, found.coalesced, found.ended) == (4.5, 1, stage.clock.now)
    assert stage.sample("pyproxy_programming_latency_seconds_count") == 2
    # The second change was taken just before the step, and has the same commit.
    expected = {"decode": 0.375, "queue": 0.125, "wait": 3.0, "pack": 1.5, "kernel": 0.5}
    for phase, seconds in expected.items():
        assert sample(stage, "pyproxy_programming_phase_seconds_sum", phase) == seconds
        assert sample(stage, "pyproxy_programming_phase_seconds_count", phase) == 2


def sample(stage: Stage, metric: str, phase: str) -> float:
    (found,) = (
        each.value
        for family in stage.metrics.collect()
        for each in family.samples
        if each.name == metric and each.labels == {"phase": phase}
    )
    return found


def test_a_retried_change_counts_from_its_reading() -> None:
    stage = Stage()
    stage.begin(service("web", 1))
    stage.dataplane.trouble.append(StaleStateError("ENOENT", 2))
    stage.clock.now += 10
    stage.handle_event(service("api", 2))
    stage.clock.now += 1
    stage.agent.sync()
    assert stage.agent.timeline.slowest().changes == ()
    stage.settle()
    # All that was pending is planned from a read-back, which times no single change.
    assert stage.agent.timeline.slowest().changes == ()
    stage.clock.now += 10
    stage.handle_event(service("web", 3))
    stage.agent.sync()
    assert [each.name for each in stage.agent.timeline.slowest().changes] == ["web"]


def timeline(clock: Clock) -> Timeline:
    return Timeline(clock, clock, Metrics().changes)


def commit(found: Timeline, clock: Clock, read_at: float, seconds: float) -> None:
    """Commit one change that was read at a time, in a step of so many seconds from now on."""
    times = found.begin(clock.now)
    times.planned = times.committed = clock.now
    clock.now += seconds
    arrival = Arrival(Kind.SERVICE, name("web"), read_at, read_at, read_at)
    found.finished(times, [arrival], reads=False)


def test_causes_are_what_happened_since_the_reading() -> None:
    clock = Clock()
    found = timeline(clock)
    activities = found.activities
    clock.now = 2000.0
    activities.note(Activity.QUERY, 1990.0)
    activities.collection("start", {})
    clock.now = 2000.5
    activities.collection("stop", {})
    activities.note(Activity.PERIODIC, 2000.4999)  # too short to be kept
    commit(found, clock, 1999.0, 1.0)  # ends at 2001.5
    with activities.during(Activity.ADDRESSES):
        clock.now = 2001.75
    commit(found, clock, 2000.25, 0.25)
    second, first = found.slowest().changes[1], found.slowest().changes[0]
    assert {each.kind: each.seconds for each in first.causes} == {
        "query": 1.0,
        "garbage collection": 0.5,
    }
    assert {each.kind: each.seconds for each in second.causes} == {
        "garbage collection": 0.25,
        "another commit": 1.0,
        "reading addresses": 0.25,
    }


def test_a_read_back_is_no_commit() -> None:
    clock = Clock()
    found = timeline(clock)
    times = found.begin(clock.now)
    clock.now += 2
    found.finished(times, (), reads=True)
    assert found.activities.within(0.0, clock.now) == {"read-back": 2.0}


def test_the_time_of_the_thread_is_a_cause() -> None:
    clock = Clock()
    found = timeline(clock)
    with found.reading_thread_times():
        commit(found, clock, clock.now, 100.0)
    (slow,) = found.slowest().changes
    off_cpu = {each.kind: each.seconds for each in slow.causes}["not running"]
    # All of the time that passed is the clock's, and the thread ran far less.
    assert 0 < off_cpu <= 100
    commit(found, clock, clock.now, 100.0)
    assert not any(each.kind == "not running" for each in found.slowest().changes[1].causes)


def test_thread_times_only_grow() -> None:
    with thread_times() as times:
        before = times.cpu(), times.run_delay()
        assert before[0] > 0
        assert before[1] >= 0
        sum(range(100_000))
        assert times.cpu() > before[0]
        assert times.run_delay() >= before[1]


def test_activities_are_limited() -> None:
    clock = Clock()
    activities = Activities(clock)
    for _ in range(10 * REMEMBERED):
        with activities.during(Activity.QUERY):
            clock.now += 1
    assert activities.within(0.0, clock.now) == {"query": REMEMBERED}


@given(st.lists(SECONDS, max_size=200))
def test_the_slowest_are_kept(taken: list[float]) -> None:
    slowest = Slowest(0.0, 0.0)
    for seconds in taken:
        if slowest.admits(seconds, 1.0, lambda: 1.0):
            slowest.add(change(seconds))
    assert seconds_of(slowest.found(1.0, lambda: 1.0)) == sorted(taken, reverse=True)[:CAPACITY]


def test_slow_changes_are_forgotten_after_two_periods() -> None:
    clock = Clock()
    found = timeline(clock)
    began = clock.now
    commit(found, clock, clock.now, 50.0)
    clock.now = began + PERIOD
    commit(found, clock, clock.now, 1.0)
    assert seconds_of(found.slowest()) == [50.0, 1.0]
    assert found.slowest().since == began
    clock.now += PERIOD
    commit(found, clock, clock.now, 2.0)
    assert seconds_of(found.slowest()) == [2.0, 1.0]
    clock.now += 3 * PERIOD
    commit(found, clock, clock.now, 3.0)
    assert seconds_of(found.slowest()) == [3.0]


def test_slow_changes_are_forgotten_although_no_other_change_comes() -> None:
    clock = Clock()
    found = timeline(clock)
    commit(found, clock, clock.now, 50.0)
    clock.now += PERIOD
    assert seconds_of(found.slowest()) == [50.0]
    clock.now += PERIOD
    assert found.slowest() == SlowChanges(clock.now - PERIOD, ())
    clock.now += 3 * PERIOD
    assert found.slowest() == SlowChanges(clock.now, ())


def test_collections_are_observed_inside_alone() -> None:
    seen: list[str] = []
    with gc_tuning.observed(lambda phase, _: seen.append(phase)):
        gc.collect()
    assert seen[-2:] == ["start", "stop"]
    count = len(seen)
    gc.collect()
    assert len(seen) == count


def test_objects_of_the_cluster_are_not_collected() -> None:
    # A struct that the collector traverses, times 10,000 Services, delays changes.
    stage = Stage()
    stage.begin(service("web", 1), endpoint_slice("web", ["10.244.1.5"]))
    state = stage.agent.cluster_state
    routings = stage.recorder.programmed
    found = [*state.services.values(), *state.slices.values(), *routings.values()]
    found += [port for routing in routings.values() for port in routing.ports]
    assert len(found) == 4
    assert not any(map(gc.is_tracked, found))
