"""Clients of the agent's socket that ask much, at once, or do not read the answers."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from socketserver import TCPServer

import msgspec
import pytest

from pyproxy.agent.loop import Inbox
from pyproxy.agent.queries import About, AgentInspector, ProgrammedState
from pyproxy.config.settings import ListenAddress, Settings
from pyproxy.inspect import http_server
from pyproxy.inspect.client import Client
from pyproxy.inspect.queries import SERVICES, STATUS, NoArgs, ServicesArgs
from pyproxy.inspect.server import InspectServer
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.inspect.turns import Turns
from pyproxy.model.address import parse_address
from pyproxy.model.objects import ObjectName, Service
from pyproxy.ui.server import PageServer
from tests.agent.objects import HOSTNAME, Stage
from tests.builders import endpoint_slice, service
from tests.ui import snapshots
from tests.ui.snapshots import FakeAgent
from tests.waiting import PATIENCE, until

SERVICES_COUNT = 1_500
ASKERS = 4
READERS = 8


class WatchedServices(dict[ObjectName, Service]):
    """Services that count how often one is read, and by how many threads at the same time."""

    def __init__(self, services: dict[ObjectName, Service]) -> None:
        super().__init__(services)
        self.reads = 0
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def __getitem__(self, name: ObjectName) -> Service:
        with self._lock:
            self.reads += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        if self.reads % 50 == 0:
            time.sleep(0.0001)  # any thread that computes runs now
        found = super().__getitem__(name)
        with self._lock:
            self._at_once -= 1
        return found


def watched_snapshot(count: int) -> tuple[Snapshot, WatchedServices]:
    made = snapshots.snapshot(*(snapshots.service(f"s-{number}") for number in range(count)))
    services = WatchedServices(dict(made.services))
    return msgspec.structs.replace(made, services=services), services


@contextmanager
def serving(snapshot: Snapshot, folder: Path) -> Iterator[tuple[str, int]]:
    """Serve socket and page of a fake agent; yield path and port."""
    agent, turns, path = FakeAgent(snapshot), Turns(), str(folder / "agent.sock")
    page = PageServer(ListenAddress(parse_address("127.0.0.1"), 0), agent, turns)
    inspect = InspectServer(path, agent, turns)
    inspect.start()
    page.start()
    try:
        yield path, page.port
    finally:
        page.stop()
        inspect.stop()


def read_page(port: int, number: int) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", port), 60)) as client:
        client.sendall(f"GET /?q=s-{number} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        response = b""
        while received := client.recv(1 << 16):
            response += received
    return response


def test_of_all_askers_and_readers_one_computes_at_a_time(tmp_path: Path) -> None:
    snapshot, services = watched_snapshot(300)
    with (
        serving(snapshot, tmp_path) as (path, port),
        ThreadPoolExecutor(ASKERS + READERS) as pool,
    ):
        lists = [pool.submit(Client(path).query, SERVICES, ServicesArgs()) for _ in range(ASKERS)]
        pages = [pool.submit(read_page, port, number) for number in range(READERS)]
        for found in lists:
            assert len(found.result().services) == 300
        for page in pages:
            assert page.result().startswith(b"HTTP/1.0 200")
    assert services.reads >= 300 * (ASKERS + READERS)
    assert services.most_at_once == 1


def test_a_client_that_does_not_read_has_only_a_part_of_its_answer_made(tmp_path: Path) -> None:
    snapshot, services = watched_snapshot(SERVICES_COUNT)
    with serving(snapshot, tmp_path) as (path, _), closing(socket.socket(socket.AF_UNIX)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(path)
        slow.sendall(b"GET /services HTTP/1.0\r\n\r\n")
        until(lambda: services.reads > 0, "the answer begins")
        # Another answer begins and ends while the slow client holds its own.
        assert len(Client(path).query(SERVICES, ServicesArgs()).services) == SERVICES_COUNT
        assert services.reads < 2 * SERVICES_COUNT
        received = len(slow.recv(1 << 20))
        while part := slow.recv(1 << 20):
            received += len(part)
        assert received > 100 * SERVICES_COUNT
        assert services.reads == 2 * SERVICES_COUNT


def test_idle_clients_do_not_keep_a_command_out(tmp_path: Path) -> None:
    snapshot, _ = watched_snapshot(3)
    with serving(snapshot, tmp_path) as (path, _), ExitStack() as stack:
        for _ in range(100):
            idle = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            idle.connect(path)
            idle.sendall(b"GET /sta")
        for _ in range(10):
            assert Client(path).query(STATUS, NoArgs()).services == 3


def test_clients_that_watch_forever_do_not_keep_a_command_out(tmp_path: Path) -> None:
    snapshot, _ = watched_snapshot(3)
    with serving(snapshot, tmp_path) as (path, _), ExitStack() as stack:
        for _ in range(40):
            watcher = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            watcher.settimeout(60)
            watcher.connect(path)
            watcher.sendall(b"GET /watch HTTP/1.0\r\n\r\n")
            assert b"200" in watcher.recv(64)
        assert Client(path).query(STATUS, NoArgs()).services == 3


@pytest.mark.parametrize("kind", [socket.AF_UNIX, socket.AF_INET])
def test_out_of_file_descriptors_a_server_pauses_between_its_tries(
    kind: socket.AddressFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, pauses = [0], list[float]()
    accept = TCPServer.get_request

    def refused(server: TCPServer) -> tuple[object, object]:
        tries[0] += 1
        if tries[0] <= 20:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(server)

    monkeypatch.setattr(TCPServer, "get_request", refused)
    monkeypatch.setattr(time, "sleep", pauses.append)
    snapshot, _ = watched_snapshot(3)
    with serving(snapshot, tmp_path) as (path, port):
        if kind is socket.AF_UNIX:
            assert Client(path).query(STATUS, NoArgs()).services == 3
        else:
            assert read_page(port, 0).startswith(b"HTTP/1.0 200")
        assert pauses.count(http_server.FAILURE_PAUSE) == 20


class Asked:
    """An agent whose inbox is read by the test alone."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.inbox: Inbox = Inbox()
        about = About(
            Settings(HOSTNAME), None, self.stage.health, lambda: 0.0, time.time, 0.0, tuple
        )
        state = ProgrammedState()
        self.inspector = AgentInspector(self.stage.agent, state, about, self.inbox.put)
        self.now = AgentInspector(self.stage.agent, state, about, lambda query: query.run())


class CountedFuture(Future[Snapshot]):
    """A future that counts the threads that have begun to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Semaphore(0)

    def result(self, timeout: float | None = None) -> Snapshot:
        self.waiting.release()
        return super().result(timeout)


def test_askers_that_wait_are_one_query_for_the_agents_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, taken = Asked(), CountedFuture()
    monkeypatch.setattr("pyproxy.agent.queries.Future", lambda: taken)
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(asked.inspector.snapshot) for _ in range(20)]
        for _ in waiting:
            assert taken.waiting.acquire(timeout=PATIENCE)
        assert asked.inbox.qsize() == 1
        # The agent is in its first sync. Meanwhile clients lose patience and ask again.
        monkeypatch.setattr("pyproxy.agent.queries.PATIENCE", 0.001)
        for _ in range(50):
            with pytest.raises(Exception, match="the agent was busy"):
                asked.inspector.snapshot()
        assert asked.inbox.qsize() == 1
        query = asked.inbox.get()
        query.run()  # type: ignore[union-attr]
        assert len({id(each.result()) for each in waiting}) == 1


def test_questions_to_an_unchanged_agent_copy_nothing() -> None:
    asked = Asked()
    asked.stage.begin(service("s1", 1), endpoint_slice("s1", ["10.244.1.1"]))
    first = asked.now.snapshot()
    for _ in range(100):
        found = asked.now.snapshot()
        assert found.services is first.services
        assert found.slices is first.slices
        assert found.routings is first.routings
    asked.stage.handle_event(service("s2", 2))
    assert asked.now.snapshot().services is not first.services
