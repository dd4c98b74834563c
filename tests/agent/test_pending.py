"""The order in which pending Services are routed, and the limit of work on large ones."""

from __future__ import annotations

from itertools import islice

from pyproxy.agent.backoff import WorkLimiter
from pyproxy.agent.pending import Arrival, PendingChanges
from pyproxy.model.objects import Kind, ObjectName


def arrival(read_at: float) -> Arrival:
    return Arrival(Kind.SERVICE, ObjectName("a", "web"), read_at, read_at, read_at)


def taken(pending: PendingChanges, count: int) -> list[str]:
    found = []
    for name in islice(pending.small(), count):
        pending.take(name)
        found.append(str(name))
    return found


def test_namespaces_take_turns() -> None:
    pending = PendingChanges(lambda _: False)
    for number in range(10_000):
        pending.add(ObjectName("busy", f"{number}"))
    pending.add(ObjectName("quiet", "web"))
    assert taken(pending, 3) == ["busy/0", "quiet/web", "busy/1"]
    assert len(pending) == 9_998


def test_a_service_that_grows_changes_lanes_once() -> None:
    large: set[ObjectName] = set()
    pending = PendingChanges(large.__contains__)
    name = ObjectName("a", "web")
    pending.add(name).arrived(arrival(1.0))
    large.add(name)
    pending.add(name).arrived(arrival(2.0))
    assert not pending.has_small
    assert list(pending.large()) == [name]
    assert pending.take(name).arrivals == [arrival(1.0), arrival(2.0)]
    assert not pending


def test_a_failed_step_comes_first_and_in_its_order() -> None:
    pending = PendingChanges(lambda _: False)
    names = [ObjectName("a", text) for text in "wxyz"]
    for name in names[:2]:
        pending.add(name).arrived(arrival(1.0))
    changes = {name: pending.take(name) for name in list(pending.small())}
    for name in (names[3], names[1]):
        pending.add(name).arrived(arrival(2.0))
    pending.put_back(changes)
    assert taken(pending, 3) == ["a/w", "a/x", "a/z"]


def test_a_change_keeps_a_limited_number_of_times() -> None:
    pending = PendingChanges(lambda _: False)
    name = ObjectName("a", "web")
    for number in range(5_000):
        pending.add(name).arrived(arrival(number))
    assert len(pending.take(name).arrivals) == 1_000


def test_work_without_end_gets_a_quarter_of_the_time() -> None:
    limiter, now, worked = WorkLimiter(), 1000.0, 0.0
    while now < 2000.0:
        now = max(now, limiter.due)
        limiter.worked(now, now + 0.1)
        now += 0.1
        worked += 0.1
    assert 250 <= worked <= 256


def test_work_after_a_quiet_time_is_not_delayed() -> None:
    limiter, now = WorkLimiter(), 1000.0
    for _ in range(30):
        assert limiter.due <= now
        limiter.worked(now, now + 0.1)
        now += 0.1
