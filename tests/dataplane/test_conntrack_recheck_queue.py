"""Second sweeps, retries, and changes in between, by a clock set by hand."""

from __future__ import annotations

from pyproxy.dataplane.conntrack.frontends import FrontendKey
from pyproxy.dataplane.conntrack.recheck_queue import (
    LAST_DELAY,
    MOST_FAILED,
    RETRY_DELAYS,
    SECOND_SWEEP,
    RecheckQueue,
)
from pyproxy.model.address import Family, Protocol

WEB = FrontendKey(Family.IPV4, Protocol.UDP, b"\x0a\x60\0\x0a\0\x35")
DNS = FrontendKey(Family.IPV4, Protocol.UDP, b"\x0a\x60\0\x0b\0\x35")
NOTHING: frozenset[FrontendKey] = frozenset()


def test_a_frontend_is_swept_twice() -> None:
    queue = RecheckQueue()
    queue.add([WEB], 10.0)
    assert queue.due() == 10.0
    assert queue.take(9.9) == {}
    queue.finish(queue.take(10.0), NOTHING, 10.5)
    assert queue.due() == 10.5 + SECOND_SWEEP
    queue.finish(queue.take(20.0), NOTHING, 20.0)
    assert queue.due() is None
    assert len(queue) == 0


def test_a_change_during_a_sweep_is_not_lost_and_starts_over() -> None:
    queue = RecheckQueue()
    queue.add([WEB], 10.0)
    taken = queue.take(10.0)
    queue.add([WEB], 10.1)
    queue.finish(taken, frozenset({WEB}), 10.2)
    (visit,) = queue.take(10.1).values()
    assert (visit.failures, visit.second) == (0, False)


def test_many_changes_of_one_frontend_are_one_recheck() -> None:
    queue = RecheckQueue()
    for moment in range(100):
        queue.add([WEB], moment / 1000)
    assert len(queue.take(1.0)) == 1


def test_failures_are_retried_ever_more_slowly() -> None:
    queue = RecheckQueue()
    queue.add([WEB], 0.0)
    now, waits = 0.0, []
    for _ in range(10):
        assert not queue.finish(queue.take(now), frozenset({WEB}), now)
        due = queue.due()
        assert due is not None
        waits.append(round(due - now, 6))
        now = due
    assert waits == [*RETRY_DELAYS, *[LAST_DELAY] * (10 - len(RETRY_DELAYS))]


def test_a_limited_number_of_failures_is_retried() -> None:
    queue = RecheckQueue()
    many = [
        FrontendKey(Family.IPV4, Protocol.UDP, number.to_bytes(6, "big"))
        for number in range(MOST_FAILED + 5)
    ]
    queue.add(many, 0.0)
    given_up = queue.finish(queue.take(0.0), frozenset(many), 0.0)
    assert len(given_up) == 5
    assert len(queue) == MOST_FAILED


def test_one_frontend_that_fails_does_not_hold_up_another() -> None:
    queue = RecheckQueue()
    queue.add([WEB, DNS], 0.0)
    queue.finish(queue.take(0.0), frozenset({WEB}), 0.0)
    assert set(queue.take(RETRY_DELAYS[0])) == {WEB}
    assert set(queue.take(SECOND_SWEEP)) == {DNS}


def test_a_success_after_a_failure_still_has_its_second_sweep() -> None:
    queue = RecheckQueue()
    queue.add([WEB], 0.0)
    queue.finish(queue.take(0.0), frozenset({WEB}), 0.0)
    queue.finish(queue.take(RETRY_DELAYS[0]), NOTHING, 5.0)
    (visit,) = queue.take(5.0 + SECOND_SWEEP).values()
    assert visit.second
