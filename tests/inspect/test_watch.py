"""`pyproxy watch`: one event for each programmed change."""

from __future__ import annotations

import queue
import threading

import pytest

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit
from pyproxy.agent.queries import ProgrammedState
from pyproxy.commands.watch import line
from pyproxy.inspect.change_log import BATCH, ChangeLog
from pyproxy.inspect.queries import WATCH, WatchArgs
from pyproxy.inspect.snapshot import Change
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import NAMESPACE, InspectedNode
from tests.waiting import PATIENCE

WEB = ObjectName(NAMESPACE, "web")
NOTHING = ServiceRouting(WEB, ())


def commit(routing: ServiceRouting | None) -> Commit:
    return Commit(
        {WEB: routing}, {WEB: routing}, full=False, node_port_addresses=(), ended=9.0, took=0.5
    )


@pytest.mark.kernel
def test_a_change_has_its_latency(node: InspectedNode) -> None:
    received: queue.SimpleQueue[Change] = queue.SimpleQueue()

    def listen() -> None:
        for change in node.client.stream(WATCH, WatchArgs(NAMESPACE)):
            received.put(change)
            if change.service.endswith("/web"):
                return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    def is_open() -> bool:
        node.wait_programmed()  # it makes changes
        return not received.empty()

    node.until(is_open, "the stream is open")
    node.create(service("web", "10.96.0.40"), endpoint_slice("web", ["10.244.1.11"]))
    thread.join(PATIENCE)
    changes = [received.get_nowait() for _ in range(received.qsize())]
    (web,) = (change for change in changes if change.service == "shop/web")
    assert web.type == "added"
    assert web.latency is not None
    assert web.latency >= web.sync_duration > 0


def test_an_unchanged_service_is_no_change() -> None:
    programmed = ProgrammedState()
    with programmed.log.watched() as changes:
        for routing in (NOTHING, NOTHING, ServiceRouting(WEB, (), affinity_timeout=9), None, None):
            programmed.committed(commit(routing), ClusterState())
        assert [each.type for each in next(changes)] == ["added", "changed", "removed"]


def changed(number: int) -> Change:
    return Change(f"shop/s-{number}", "changed", 1, 0.0, 0.0)


def test_all_watchers_read_the_same_changes_in_batches() -> None:
    log = ChangeLog()
    with log.watched() as one, log.watched() as other:
        log.add([changed(number) for number in range(BATCH + 5)])
        for changes in (one, other):
            batches = [next(changes), next(changes)]
            assert [len(batch) for batch in batches] == [BATCH, 5]
            assert [each for batch in batches for each in batch] == [
                changed(number) for number in range(BATCH + 5)
            ]


def test_a_slow_watcher_loses_the_oldest_changes_and_delays_no_other() -> None:
    log = ChangeLog(capacity=10)
    with log.watched() as changes:
        for number in range(35):
            log.add([changed(number)])
        assert next(changes) == [changed(number) for number in range(25, 35)]
        log.add([changed(number) for number in range(100)])
        assert next(changes) == [changed(number) for number in range(90, 100)]


def test_changes_without_a_watcher_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    programmed = ProgrammedState()
    with programmed.log.watched():
        pass
    monkeypatch.setattr(programmed.log, "add", lambda _: pytest.fail("no client watches"))
    programmed.committed(commit(NOTHING), ClusterState())
    assert programmed.syncs == 1


def test_a_change_is_one_line() -> None:
    change = Change("shop/web", "added", 2, 1.5, 0.0004, 0.0123)
    assert line(change).plain == (
        "1970-01-01T00:00:01.500Z  added   shop/web                                 2 endpoints   "
        " sync 0.4 ms, latency 12.3 ms"
    )
