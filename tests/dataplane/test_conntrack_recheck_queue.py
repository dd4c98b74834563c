from __future__ import annotations

from pyproxy.dataplane.conntrack.frontends import Key
from pyproxy.dataplane.conntrack.recheck_queue import RETRY_DELAYS, SECOND_LOOK, RecheckQueue
from pyproxy.model.address import Family, Protocol

WEB = Key(Family.IPV4, Protocol.UDP, b"\x0a\x60\0\x0a\0\x35")
DNS = Key(Family.IPV4, Protocol.UDP, b"\x0a\x60\0\x0b\0\x35")
NOTHING: frozenset[Key] = frozenset()


def test_a_frontend_is_looked_at_twice() -> None:
    agenda = RecheckQueue()
    agenda.add([WEB], 10.0)
    assert agenda.due() == 10.0
    assert agenda.take(9.9) == {}
    agenda.looked(agenda.take(10.0), NOTHING, 10.5)
    assert agenda.due() == 10.5 + SECOND_LOOK
    agenda.looked(agenda.take(20.0), NOTHING, 20.0)
    assert agenda.due() is None
    assert len(agenda) == 0


def test_a_change_during_a_look_is_not_lost_and_starts_over() -> None:
    agenda = RecheckQueue()
    agenda.add([WEB], 10.0)
    taken = agenda.take(10.0)
    agenda.add([WEB], 10.1)
    agenda.looked(taken, frozenset({WEB}), 10.2)
    (visit,) = agenda.take(10.1).values()
    assert (visit.failures, visit.second) == (0, False)


def test_many_changes_of_one_frontend_are_one_visit() -> None:
    agenda = RecheckQueue()
    for moment in range(100):
        agenda.add([WEB], moment / 1000)
    assert len(agenda.take(1.0)) == 1


def test_failures_are_retried_ever_more_slowly_and_then_given_up() -> None:
    agenda = RecheckQueue()
    agenda.add([WEB], 0.0)
    now, waits = 0.0, []
    while not (given_up := agenda.looked(agenda.take(now), frozenset({WEB}), now)):
        due = agenda.due()
        assert due is not None
        waits.append(round(due - now, 6))
        now = due
    assert given_up == {WEB}
    assert tuple(waits) == RETRY_DELAYS
    assert agenda.due() is None


def test_one_frontend_that_fails_does_not_hold_up_another() -> None:
    agenda = RecheckQueue()
    agenda.add([WEB, DNS], 0.0)
    agenda.looked(agenda.take(0.0), frozenset({WEB}), 0.0)
    assert set(agenda.take(RETRY_DELAYS[0])) == {WEB}
    assert set(agenda.take(SECOND_LOOK)) == {DNS}


def test_a_success_after_a_failure_still_has_its_second_look() -> None:
    agenda = RecheckQueue()
    agenda.add([WEB], 0.0)
    agenda.looked(agenda.take(0.0), frozenset({WEB}), 0.0)
    agenda.looked(agenda.take(RETRY_DELAYS[0]), NOTHING, 5.0)
    (visit,) = agenda.take(5.0 + SECOND_LOOK).values()
    assert visit.second
