"""`pyproxy watch` tells of each change once it is programmed; who does not read loses its own."""

from __future__ import annotations

import queue
import threading

import pytest

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.core import Commit
from pyproxy.agent.queries import ProgrammedState
from pyproxy.commands.watch import line
from pyproxy.inspect.snapshot import Change
from pyproxy.inspect.watch import WATCH, Of
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import NAMESPACE, InspectedNode

WEB = ObjectName(NAMESPACE, "web")
NOTHING = ServiceRouting(WEB, ())


def commit(routing: ServiceRouting | None) -> Commit:
    return Commit({WEB: routing}, whole=False, node_port_addresses=(), ended=9.0, took=0.5)


@pytest.mark.kernel
def test_a_change_is_told_with_its_latency(node: InspectedNode) -> None:
    heard: queue.SimpleQueue[Change] = queue.SimpleQueue()

    def listen() -> None:
        for change in node.client.follow(WATCH, Of(NAMESPACE)):
            heard.put(change)
            if change.service.endswith("/web"):
                return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    node.heard()  # whatever comes now, somebody listens
    node.create(service("web", "10.96.0.40"), endpoint_slice("web", ["10.244.1.11"]))
    thread.join(10)
    changes = [heard.get_nowait() for _ in range(heard.qsize())]
    (web,) = (change for change in changes if change.service == "shop/web")
    assert web.what == "added"
    assert web.latency is not None
    assert web.latency >= web.took > 0


def test_a_commit_is_told_by_what_is_different() -> None:
    memory = ProgrammedState()
    told = []
    with memory.watched() as changes:
        for routing in (NOTHING, NOTHING, ServiceRouting(WEB, (), affinity_timeout=9), None, None):
            memory.committed(commit(routing), ClusterState())
        told = [changes.get_nowait().what for _ in range(changes.qsize())]
    assert told == ["added", "changed", "removed"]


def test_a_watcher_that_does_not_read_holds_up_nobody() -> None:
    memory = ProgrammedState()
    with memory.watched() as changes:
        for number in range(changes.maxsize + 1):
            memory.committed(
                commit(ServiceRouting(WEB, (), affinity_timeout=number + 1)), ClusterState()
            )
        assert changes.full()
    assert memory.syncs == changes.maxsize + 1


def test_nobody_is_told_after_leaving() -> None:
    memory = ProgrammedState()
    with memory.watched() as changes:
        pass
    memory.committed(commit(NOTHING), ClusterState())
    assert changes.empty()


def test_a_change_is_one_line() -> None:
    change = Change("shop/web", "added", 2, 1.5, 0.0004, 0.0123)
    assert line(change).plain == (
        "1970-01-01T00:00:01.500Z  added   shop/web                                 2 endpoints   "
        " in a sync of 0.4 ms, 12.3 ms after it was read"
    )
