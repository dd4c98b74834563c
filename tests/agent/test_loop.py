"""The agent's loop: events, periodic work and the garbage collector around a sync."""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Iterator

import pytest

from pyproxy.agent.loop import SWITCH_INTERVAL, Chores, Inbox, Loop, Stop
from pyproxy.errors import PermissionKernelError
from pyproxy.model.events import Upsert
from tests.agent.objects import PlannedTable, Stage
from tests.builders import service


def looping(stage: Stage, inbox: Inbox) -> Loop[PlannedTable]:
    stage.begin(service("web", 1))
    inbox.put(Upsert(service("api", 2)))
    return Loop(stage.agent, inbox, Chores(), stage.health)


def test_the_garbage_collector_rests_during_the_first_sync_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, inbox = Stage(), Inbox()
    loop = looping(stage, inbox)
    then: Iterator[Upsert | Stop] = iter([Upsert(service("db", 3)), Stop()])
    rested = []

    def committed(*_: object) -> None:
        rested.append(not gc.isenabled())
        inbox.put(next(then))

    monkeypatch.setattr(stage.recorder, "committed", committed)
    loop.run()
    assert rested == [True, False]
    assert gc.isenabled()


def test_threads_interrupt_one_another_sooner_after_the_first_sync(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, inbox = Stage(), Inbox()
    loop = looping(stage, inbox)
    then: Iterator[Upsert | Stop] = iter([Upsert(service("db", 3)), Stop()])
    intervals = []

    def committed(*_: object) -> None:
        intervals.append(sys.getswitchinterval())
        inbox.put(next(then))

    monkeypatch.setattr(stage.recorder, "committed", committed)
    before = sys.getswitchinterval()
    loop.run()
    assert intervals == [before, pytest.approx(SWITCH_INTERVAL)]
    assert sys.getswitchinterval() == before


def test_it_works_again_after_a_sync_that_ends_the_agent() -> None:
    stage, inbox = Stage(), Inbox()
    loop = looping(stage, inbox)
    stage.dataplane.trouble = [PermissionKernelError("EPERM", errno.EPERM)]
    with pytest.raises(PermissionKernelError):
        loop.run()
    assert gc.isenabled()


def test_spare_work_goes_on_in_parts_without_waiting_for_an_event() -> None:
    stage, inbox = Stage(), Inbox()
    # The loop waits for its first event.
    inbox.put(Upsert(service("web", 1)))
    parts = 0

    def spare() -> bool:
        nonlocal parts
        parts += 1
        if parts == 3:
            inbox.put(Stop())
        return parts < 3

    Loop(stage.agent, inbox, Chores(period=60.0, spare=spare), stage.health).run()
    assert parts == 3
