"""API server faults: the known rows stay, and afterwards the table equals the objects."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from pyproxy_lab.apiserver.faults import (
    Cut,
    Disorder,
    ErrorStatus,
    Fault,
    HalfOpen,
    Page,
    ShortWatches,
    Slow,
)
from pyproxy_lab.apiserver.server import ApiServer

from pyproxy.source import kubernetes
from pyproxy.source.retry import SystemClock
from tests.chaos.objects import delete_numbered, numbered_service, numbered_slice
from tests.chaos.table_agent import agent, api_server
from tests.source.scripted import NODES, Exchange, Pace, Server, listed, quiet, serving
from tests.waiting import PATIENCE

FAULTS: dict[str, tuple[Fault, ...]] = {
    "429 with Retry-After": (ErrorStatus(429, 2),),
    "500": (ErrorStatus(500),),
    "503": (ErrorStatus(503, 1),),
    "403": (ErrorStatus(403),),
    "401": (ErrorStatus(401),),
    "HTML with 200": (Page(),),
    "cut JSON": (Cut(),),
    "half-open watches": (HalfOpen(),),
    "slow": (Slow(0.05),),
    "short watches": (ShortWatches(0.05),),
    "disorder": (Disorder(),),
    "short, disordered and slow": (ShortWatches(0.2), Disorder(), Slow(0.01)),
}


def end_watches(server: ApiServer) -> None:
    server.close_watches()


def forget(server: ApiServer) -> None:
    """Have the server respond with 410 to every watch from a known version."""
    server.forget_history()
    server.close_watches()


KICKS: dict[str, Callable[[ApiServer], None]] = {
    "watches go on": lambda server: None,
    "watches end": end_watches,
    "history is forgotten": forget,
}


def changes(server: ApiServer, begin: int) -> None:
    """Add, change and remove objects whose rows need not stay."""
    for number in range(begin, begin + 4):
        server.load([numbered_service(number), numbered_slice(number, [number])])
    server.load([numbered_slice(begin, [7, 8, 9])])
    server.call(lambda: delete_numbered(server.registry, begin + 1))


def silence_for(fault: str) -> float:
    """Return the silence that an agent accepts: short where the fault begins or ends with it."""
    return 0.5 if isinstance(FAULTS[fault][0], HalfOpen | ShortWatches) else 30.0


@pytest.mark.parametrize("kick", KICKS)
@pytest.mark.parametrize("fault", FAULTS)
def test_rows_stay_through_a_fault(fault: str, kick: str) -> None:
    with api_server() as server, agent(server, silence=silence_for(fault)) as rig:
        rig.until_equal(server)
        rig.dataplane.keep()
        server.faults.set(*FAULTS[fault])
        KICKS[kick](server)
        changes(server, 10)
        met = server.faults.met
        if kick != "watches go on" or not isinstance(FAULTS[fault][0], ErrorStatus | Page):
            rig.until(lambda: met, "the fault is met")
        changes(server, 20)
        server.faults.clear()
        rig.until_equal(server)
        assert rig.dataplane.lost == []
        assert rig.health.is_healthy()
        changes(server, 30)
        rig.until_equal(server)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_the_start_delays_the_first_commit(fault: str) -> None:
    """Objects of an incomplete list are not programmed, so a fault cannot cause a gap."""
    with api_server() as server:
        server.faults.set(*FAULTS[fault])
        with agent(server, silence=silence_for(fault)) as rig:
            rig.until(lambda: server.faults.met, "the fault is met")
            server.faults.clear()
            rig.until_equal(server)
            assert all(len(delta.remove) == 0 for delta in rig.dataplane.commits)


def test_a_server_that_is_away_refuses_connections_and_comes_back() -> None:
    with api_server() as server, agent(server) as rig:
        rig.until_equal(server)
        rig.dataplane.keep()
        requests = len(rig.clock.waits)
        with server.away():
            changes(server, 10)
            rig.until(lambda: len(rig.clock.waits) > requests + 20, "it is asked again and again")
            assert rig.health.is_healthy()
            assert rig.dataplane.lost == []
        rig.until_equal(server)
        assert rig.dataplane.lost == []
        with server.away():
            pass
        changes(server, 20)
        rig.until_equal(server)


def test_a_list_that_shrinks_while_the_server_is_away() -> None:
    """Objects disappear without delete events; the rows of the rest stay in the table."""
    with api_server() as server, agent(server) as rig:
        rig.until_equal(server)
        rig.dataplane.keep()
        server.load(
            obj for n in range(10, 60) for obj in (numbered_service(n), numbered_slice(n, [n]))
        )
        rig.until_equal(server)

        def shrink() -> None:
            for number in range(10, 60):
                delete_numbered(server.registry, number)

        with server.away():
            server.call(shrink)
            server.forget_history()
        rig.until_equal(server)
        assert rig.dataplane.lost == []


def test_a_restart_with_another_history() -> None:
    """Resource versions restart below the known ones, with other objects."""
    with api_server() as server, agent(server) as rig:
        port = int(server.url.rpartition(":")[2])
        rig.until_equal(server)
        rig.dataplane.keep()
        for number in range(10, 20):
            server.load([numbered_service(number), numbered_slice(number, [number])])
        rig.until_equal(server)
        more = [numbered_service(30), numbered_slice(30, [1])]
        with server.away(), api_server(port, more=more) as other:
            rig.until_equal(other)
            assert rig.dataplane.lost == []


def test_half_open_watches_are_found_within_a_minute_and_a_half() -> None:
    # Bookmarks, which are up to 75 s apart, keep idle watches open.
    assert 75 < kubernetes.SILENCE <= 80
    with api_server() as server, agent(server, silence=2.5) as rig:
        rig.until_equal(server)
        server.faults.set(HalfOpen())
        server.load([numbered_service(50), numbered_slice(50, [5])])
        rig.until(lambda: server.faults.met[HalfOpen] >= 2, "both watches are met")
        server.faults.clear()
        rig.until_equal(server)
        # The retry follows the silence directly, without a backoff.
        assert rig.clock.waits == []


def test_retry_after_is_obeyed_and_other_delays_are_random() -> None:
    with api_server() as server:
        server.faults.set(ErrorStatus(429, 7))
        with agent(server) as rig:
            rig.until(lambda: len(rig.clock.waits) >= 30, "enough rejections")
            waits = rig.clock.waits[:30]
    assert all(7 <= wait <= 37 for wait in waits)
    assert len(set(waits)) == 30, "a thousand nodes that wait alike return alike"
    assert max(waits) - min(waits) > 1


def test_paged_lists_are_read_from_the_servers_cache() -> None:
    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents"):
            exchange.fail(422)
        elif exchange.route == NODES and not exchange.query.get("watch"):
            # The first commit waits for the Node.
            exchange.respond(listed(NODES, [{"metadata": {"name": "node-a"}}]))
        else:
            quiet(exchange)

    with serving(script) as scripted, agent(scripted.url) as rig:
        rig.until(rig.health.is_healthy, "the first commit")
        assert _first_lists(scripted) == {"0"}


def _first_lists(server: Server) -> set[str]:
    return {
        request.query.get("resourceVersion", "")
        for request in server.seen
        if not request.query.get("watch")
    }


def test_the_age_of_the_last_event_is_a_metric() -> None:
    with api_server(bookmark_interval=0.1) as server, agent(server, silence=30.0) as rig:
        rig.metrics.process.source_age(rig.source.age)
        rig.until_equal(server)

        def age() -> float:
            lines = rig.metrics.exposition().decode().splitlines()
            name = "pyproxy_source_last_event_age_seconds "
            return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))

        server.faults.set(HalfOpen())
        rig.until(lambda: age() > 0.5, "silence makes it grow")
        server.faults.clear()
        server.close_watches()
        with server.away():
            pass
        rig.until(lambda: age() < 0.3, "bookmarks make it small")


def test_idle_watches_receive_bookmarks() -> None:
    """A silence shorter than the interval of bookmarks must not look like a lost API server."""
    with api_server(bookmark_interval=3600.0) as server, agent(server, silence=4.0) as rig:
        rig.until_equal(server)
        rig.until(lambda: rig.source.age() > 3.5, "idle watches are silent")
        # The next watches are short, and servers send a bookmark before the end of each.
        rig.until(lambda: rig.source.age() < 3.0, "every kind has a bookmark")
        server.load([numbered_service(60), numbered_slice(60, [7])])
        rig.until_equal(server)


@pytest.mark.parametrize("fault", [HalfOpen(), Slow(900.0), ErrorStatus(429, 900)], ids=repr)
def test_stop_ends_all_threads_during_a_fault(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By default it gives up after a second, which may be too early on a loaded machine.
    monkeypatch.setattr(kubernetes, "STOP_TIMEOUT", PATIENCE)
    earlier = source_threads()  # of other tests
    with api_server() as server:
        server.faults.set(fault)
        with agent(server, clock=_RealPace()) as rig:
            rig.until(lambda: server.faults.met, "the fault is met")
            rig.source.stop()
            assert not source_threads() - earlier


def source_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("source-")}


class _RealPace(Pace):
    """The machine's clock."""

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        SystemClock().wait(stopping, seconds)
