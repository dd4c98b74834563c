"""Questions between events: they are answered in order, write nothing, and delay no sync."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from pyproxy.agent.loop import Chores, Inbox, Loop, Stop
from pyproxy.agent.queries import About, AgentInspector, ProgrammedState, Query
from pyproxy.config.settings import Settings
from pyproxy.errors import TransientKernelError
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.model.events import Upsert
from pyproxy.model.objects import ObjectName
from tests.agent.objects import HOSTNAME, Stage
from tests.builders import endpoint_slice, service

SERVICES = 50


class Asked:
    """An agent, its programmed state, and an inbox that `empty` empties."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.memory = ProgrammedState()
        self.inbox: Inbox = Inbox()
        stage = self.stage
        about = About(Settings(HOSTNAME), None, stage.health, lambda: 0.0, stage.clock, 0.0, tuple)
        self.witness = AgentInspector(self.stage.agent, self.memory, about, self.inbox.put)
        self.now = AgentInspector(self.stage.agent, self.memory, about, lambda q: q.run())

    def empty(self) -> None:
        """Run the agent's loop until it has seen everything."""
        self.inbox.put(Stop())
        Loop(
            self.stage.agent, self.inbox, Chores(period=60.0), self.stage.health, self.stage.clock
        ).run()


def name(number: int) -> ObjectName:
    return service(f"s{number}", number).name


def test_a_snapshot_is_a_copy_that_the_agent_does_not_touch() -> None:
    asked = Asked()
    asked.stage.begin(service("s1", 1), endpoint_slice("s1", ["10.244.1.1"]))
    before = asked.now.snapshot()
    asked.stage.handle_event(service("s2", 2))
    assert name(2) not in before.services
    after = asked.now.snapshot()
    assert name(2) in after.services
    # The values are shared: what costs is the mapping alone.
    assert after.services[name(1)] is before.services[name(1)]


def test_a_snapshot_has_the_error_of_the_last_sync() -> None:
    asked = Asked()
    asked.stage.begin()
    asked.stage.dataplane.trouble = [TransientKernelError("EBUSY", errno.EBUSY)]
    asked.stage.handle_event(service("s1", 1))
    asked.stage.agent.sync()
    assert asked.now.snapshot().sync_error == "EBUSY"


def busy(questions: int) -> tuple[Asked, list[int]]:
    """An agent with so many queries after the event of each Service."""
    asked, seen = Asked(), list[int]()
    asked.stage.begin()
    world = asked.stage.agent.cluster_state
    for number in range(1, SERVICES):
        asked.inbox.put(Upsert(service(f"s{number}", number), asked.stage.clock()))
        for _ in range(questions):
            asked.inbox.put(Query(lambda: seen.append(len(world.services))))
    asked.empty()
    asked.stage.settle()
    return asked, seen


def test_questions_among_events_change_neither_syncs_nor_writes() -> None:
    (quiet, _), (asked, seen) = busy(0), busy(20)
    # Each query saw the events before it, and none after it.
    assert seen == [number for number in range(1, SERVICES) for _ in range(20)]
    assert asked.stage.dataplane.commits == quiet.stage.dataplane.commits
    assert asked.stage.dataplane.reads == quiet.stage.dataplane.reads


def test_a_question_that_fails_is_its_askers_trouble_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked()
    asked.stage.begin()
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            asked.witness.snapshot()
        except ZeroDivisionError as error:
            failures.append(error)

    monkeypatch.setattr(asked.stage.agent, "problems", lambda: 1 // 0)
    thread = threading.Thread(target=ask)
    thread.start()
    while asked.inbox.empty():
        time.sleep(0.001)
    asked.empty()
    thread.join()
    assert len(failures) == 1


def test_an_agent_that_never_comes_to_it_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyproxy.agent.queries.PATIENCE", 0.01)
    with pytest.raises(Exception, match="the agent was busy"):
        Asked().witness.snapshot()


def test_memory_is_what_was_programmed() -> None:
    asked = Asked()
    asked.stage.begin(service("s1", 1), endpoint_slice("s1", ["10.244.1.1"]))
    asked.memory.committed(asked.stage.recorder.commits[-1], asked.stage.agent.cluster_state)
    snapshot: Snapshot = asked.now.snapshot()
    assert set(snapshot.routings) == {name(1)}
    assert snapshot.last_sync is not None
    assert (snapshot.last_sync.services, snapshot.last_sync.full) == (1, True)
