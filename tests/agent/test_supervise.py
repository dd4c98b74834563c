"""Threads that fail while the agent looks on: the real ones, with mistakes put into them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator

import pytest

from pyproxy import workers
from pyproxy.agent import supervise
from pyproxy.agent.loop import Chores, Inbox, Loop, Stop, watch_drift
from pyproxy.dataplane.conntrack import Reconciler
from pyproxy.dataplane.interface import Drift
from pyproxy.errors import TransientKernelError
from pyproxy.health.state import Health
from pyproxy.metrics import Metrics
from pyproxy.model.address import Family, Protocol
from pyproxy.model.events import Event
from pyproxy.netlink.conntrack import Deletion
from pyproxy.netlink.flows import Flow
from tests.agent.objects import Stage
from tests.builders import service
from tests.dataplane.conntrack_service import routing
from tests.source.scripted import Recorder, following, quiet, serving
from tests.waiting import PATIENCE, until


class Watch:
    """Health and metrics of an agent that has committed once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.health = Health(30.0, lambda: self.now)
        self.metrics = Metrics()
        self.health.updated()

    def failures(self, thread: str) -> float:
        line = f'pyproxy_worker_failures_total{{thread="{thread}"}} '
        found = [text for text in self.metrics.exposition().decode().splitlines() if line in text]
        return float(found[0].removeprefix(line)) if found else 0.0


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setattr(workers, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(workers, "LONGEST_PAUSE", 0.01)
    watch = Watch()
    before = threading.excepthook
    with supervise.reporting_failures(watch.health, watch.metrics):
        yield watch
    assert threading.excepthook is before


class Dataplane:
    """One that makes a mistake at some calls, and at the end says that it is closed."""

    def __init__(self, *outcomes: Drift | Exception) -> None:
        self.outcomes = list(outcomes)

    def wait_for_drift(self) -> Drift | None:
        if not self.outcomes:
            return None
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def test_a_thread_that_keeps_failing_logs_one_traceback(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 5
    seen: list[Drift] = []
    mistakes = [ValueError(f"planted {number}") for number in range(failures)]
    watch_drift(Dataplane(*mistakes, Drift("nft")), seen.append)
    until(lambda: Drift("nft") in seen)
    assert watch.failures("drift") == failures
    assert len(caplog.records) == failures
    assert [record.exc_info is not None for record in caplog.records] == [True] + [False] * 4
    assert all("ValueError in test_supervise.py" in r.getMessage() for r in caplog.records)


def test_a_drift_thread_that_fails_begins_again(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Drift] = []
    watch_drift(Dataplane(KeyError("planted"), Drift("nft")), seen.append)
    until(lambda: len(seen) == 2)
    # The first one, because its notifications are lost.
    assert seen == [Drift(""), Drift("nft")]
    assert watch.failures("drift") == 1
    assert watch.health.is_healthy()
    (record,) = caplog.records
    assert "thread drift failed" in record.getMessage()
    assert "restarts" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


def test_one_that_keeps_failing_is_no_health(watch: Watch) -> None:
    watch_drift(Dataplane(*[KeyError("planted")] * 3), lambda _: None)
    until(lambda: watch.failures("drift") == 3)
    until(lambda: not watch.health.is_healthy())
    watch.now += 60.0
    assert watch.health.is_healthy()


def test_any_other_thread_that_ends_so_is_missed_for_good(watch: Watch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    thread = threading.Thread(target=fail, name="other")
    thread.start()
    thread.join()
    watch.now += 10_000
    assert not watch.health.report().healthy
    assert watch.failures("other") == 1


def test_a_source_that_fails_lists_again(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder_fails = [KeyError("planted")]
    take = Recorder.__call__

    def fail_once(self: Recorder, event: Event) -> None:
        if recorder_fails and threading.current_thread().name == "source-Service":
            raise recorder_fails.pop()
        take(self, event)

    monkeypatch.setattr(Recorder, "__call__", fail_once)
    with serving(quiet) as server, following(server.url) as (recorder, _):
        recorder.until(lambda seen: seen == ["="])
        lists = server.requests_for("/api/v1/services", sendInitialEvents="true")
    assert len(lists) == 2
    assert watch.failures("source-Service") == 1
    assert watch.health.is_healthy()


class Conntrack:
    """A table whose first reading runs into a mistake."""

    selective = True

    def __init__(self) -> None:
        self.looks = 0

    def flows(
        self, family: Family, protocol: Protocol, destination: bytes = b""
    ) -> Iterator[list[Flow]]:
        self.looks += 1
        if self.looks == 1:
            raise KeyError("planted")
        return iter(())

    def delete(self, flows: object) -> Deletion:
        return Deletion(0)


def test_the_conntrack_worker_looks_again_at_what_it_was_looking_at(watch: Watch) -> None:
    table = Conntrack()
    reconciler = Reconciler(table, watch.metrics.kernel)
    reconciler.start()
    reconciler.full([routing([1])])
    until(lambda: table.looks >= 2)
    reconciler.stop()
    assert watch.failures("conntrack") == 1
    assert watch.health.is_healthy()


class Bench:
    """The agent's loop in a thread, over a table, with clocks that stand still."""

    def __init__(self, chores: Callable[[], None]) -> None:
        self.stage = Stage()
        self.inbox: Inbox = Inbox()
        self.loop = Loop(self.stage.agent, self.inbox, Chores(chores, 0.01), self.stage.health)
        self.thread = threading.Thread(target=self.loop.run, name="loop")


def test_a_stuck_agent_thread_is_noticed_and_its_return_too() -> None:
    stuck, free = threading.Event(), threading.Event()

    def chores() -> None:
        stuck.set()
        free.wait(PATIENCE)

    bench = Bench(chores)
    stage = bench.stage
    stage.begin(service("web", 1))
    bench.thread.start()
    assert stuck.wait(PATIENCE)
    assert stage.health.is_healthy()
    stage.clock.now += 30
    assert not stage.health.report().healthy
    free.set()
    until(stage.health.is_healthy)
    bench.inbox.put(Stop())
    bench.thread.join(PATIENCE)


def test_syncs_that_keep_failing_are_no_health() -> None:
    stage = Stage()
    stage.begin(service("web", 1))
    stage.handle_event(service("api", 2))
    stage.dataplane.trouble = [TransientKernelError("EBUSY", errno.EBUSY)] * 1000
    until = stage.clock.now + 60.0
    while stage.clock.now < until:
        assert stage.health.is_healthy()
        stage.agent.sync()
        stage.clock.now = min(until, stage.agent.due() or until)
    assert not stage.health.report().healthy
    stage.dataplane.trouble.clear()
    stage.settle()
    assert stage.health.is_healthy()
