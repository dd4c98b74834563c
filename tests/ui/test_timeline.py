"""The timeline of changes and connections, and its recorder."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.inspect.snapshot import Change
from pyproxy.ui.timeline import SECONDS, Recorder, Timeline

from .snapshots import FakeAgent, snapshot


def change(ended: float, latency: float) -> Change:
    return Change("shop/web", "changed", 3, ended, latency / 2, latency)


def test_a_timeline_has_the_maximum_of_each_second_and_drops_old_seconds() -> None:
    timeline = Timeline()
    for ended, latency in ((10.1, 0.2), (10.9, 0.7), (10.5, 0.4), (12.0, 0.1)):
        timeline.add_change(change(ended, latency))
    assert [(m.second, m.changes, m.latency, m.sync_duration) for m in timeline.moments(12.0)] == [
        (10, 3, 0.7, 0.35),
        (12, 1, 0.1, 0.05),
    ]
    for second in range(1000, 1000 + 2 * SECONDS):
        timeline.add_change(change(second, 0.1))
    assert len(timeline.moments(1000.0 + 2 * SECONDS)) < SECONDS
    assert len(timeline._moments) == SECONDS


def test_counters_are_read_every_five_seconds_while_the_page_has_viewers() -> None:
    now, has_viewers, read_at = [0.0], [False], []

    def count() -> int | None:
        read_at.append(now[0])
        return None if len(read_at) == 1 else 30

    timeline = Timeline()
    agent = FakeAgent(snapshot())
    # The wall clock is an hour ahead and goes back by a minute, which changes no interval. The
    # moments after its new time are dropped.
    recorder = Recorder(
        agent,
        timeline,
        lambda: now[0] + (3600 if now[0] < 20 else 3540),
        lambda: now[0],
        count,
        lambda: has_viewers[0],
    )
    for second in range(30):
        now[0], has_viewers[0] = float(second), second >= 10
        recorder.record_connections()
    assert read_at == [10.0, 15.0, 20.0, 25.0]
    assert [(m.second, m.connections) for m in timeline.moments(3600.0)] == [
        (3560, 6.0),
        (3565, 6.0),
    ]


def test_moments_are_in_order_after_the_clock_was_set_back() -> None:
    timeline = Timeline()
    for second in range(7000, 7600):
        timeline.add_change(change(second, 0.1))
    # The clock is an hour behind now, and nothing has happened since.
    assert timeline.moments(4000.0) == ()
    for second in range(4000, 4010):
        timeline.add_change(change(second, 0.2))
    assert [each.second for each in timeline.moments(4009.5)] == list(range(4000, 4010))
    # When the clock arrives at the former time, the moments of that time do not come back.
    timeline.add_change(change(7300, 0.3))
    assert [(each.second, each.changes) for each in timeline.moments(7300.0)] == [(7300, 1)]


def test_a_clock_that_was_ahead_for_a_moment_loses_nothing_else() -> None:
    timeline = Timeline()
    for second in (*range(100, 110), 3710, *range(111, 120)):
        timeline.add_change(change(second, 0.1))
    assert [each.second for each in timeline.moments(119.0)] == [
        *range(100, 110),
        *range(111, 120),
    ]


@given(st.lists(st.integers(0, 2000), max_size=50), st.integers(0, 2000))
def test_moments_are_always_in_order_and_not_after_now(seconds: list[int], now: int) -> None:
    timeline = Timeline()
    for number, second in enumerate(seconds):
        if number % 2:
            timeline.add_connections(second, 1.0)
        else:
            timeline.add_change(change(second, 0.1))
    found = [each.second for each in timeline.moments(now)]
    assert found == sorted(set(found))
    assert all(now - SECONDS < each <= now for each in found)
    if seconds:
        assert max(timeline._moments) <= seconds[-1] + 5


def test_late_moments_are_put_in_order() -> None:
    timeline = Timeline()
    for second in (100, 103, 101, 102, 103):
        timeline.add_change(change(second, 0.1))
    assert [(each.second, each.changes) for each in timeline.moments(103.0)] == [
        (100, 1),
        (101, 1),
        (102, 1),
        (103, 2),
    ]
