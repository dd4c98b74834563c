"""The timeline of changes and connections, and its recorder."""

from __future__ import annotations

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
    assert len(timeline.moments(0.0)) == SECONDS


def test_counters_are_read_every_five_seconds_while_the_page_has_viewers() -> None:
    now, has_viewers, read_at = [0.0], [False], []

    def count() -> int | None:
        read_at.append(now[0])
        return None if len(read_at) == 1 else 30

    timeline = Timeline()
    agent = FakeAgent(snapshot())
    # The wall clock is an hour ahead and goes back by a minute, which changes no interval.
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
        (3615, 6.0),
        (3560, 6.0),
        (3565, 6.0),
    ]
