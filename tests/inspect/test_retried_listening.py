"""The socket and the page of an agent whose path or port is taken at its start."""

from __future__ import annotations

import errno
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest

from pyproxy.config.settings import ListenAddress
from pyproxy.dataplane.connections import ConnectionCounters
from pyproxy.errors import KernelError
from pyproxy.inspect import retried_listening
from pyproxy.inspect.client import Client, NoAgentError
from pyproxy.inspect.queries import SERVICES, ServicesArgs
from pyproxy.inspect.server import InspectServer
from pyproxy.inspect.turns import Turns
from pyproxy.model.address import parse_address
from pyproxy.ui import timeline
from pyproxy.ui.server import PageServer
from tests.ui.snapshots import FakeAgent, service, snapshot
from tests.waiting import until


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retried_listening, "RETRY_SECONDS", 0.01)


def agent() -> FakeAgent:
    return FakeAgent(snapshot(service("web")))


@contextmanager
def started(server: InspectServer | PageServer) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop()


def responds(path: Path) -> bool:
    try:
        return len(Client(str(path)).query(SERVICES, ServicesArgs()).services) == 1
    except NoAgentError:
        return False


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(0)
        yield sock


def test_a_socket_of_another_agent_is_taken_over_when_that_agent_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "agent.sock"
    first, second = (InspectServer(str(path), agent(), Turns()) for _ in range(2))
    with ExitStack() as stack:
        with started(first):
            stack.enter_context(started(second))
            assert responds(path)
            (line,) = caplog.messages
            assert line.startswith(f"cannot listen on {path}: another agent listens there")
        until(lambda: responds(path))
    assert not path.exists()


def test_a_socket_that_another_process_leaves_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with ExitStack() as stack:
        with listening(path):
            stack.enter_context(started(InspectServer(str(path), agent(), Turns())))
        assert path.exists()
        until(lambda: responds(path))


def test_a_full_queue_of_a_stopped_agent_blocks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with ExitStack() as stack:
        with listening(path):
            # Nothing accepts, as in a process after SIGSTOP.
            clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(9)]
            for client in clients:
                client.setblocking(False)
            codes = [client.connect_ex(str(path)) for client in clients]
            assert errno.EAGAIN in codes
            stack.enter_context(started(InspectServer(str(path), agent(), Turns())))
        until(lambda: responds(path))


def test_a_folder_that_cannot_be_made_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.write_text("not a folder")
    with started(InspectServer(str(folder / "agent.sock"), agent(), Turns())):
        folder.unlink()
        until(lambda: responds(folder / "agent.sock"))


def test_descriptors_that_are_used_up_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.sock"
    inspect, page = InspectServer(str(path), agent(), Turns()), page_server(0)
    with ExitStack() as stack:
        with used_up_descriptors(monkeypatch):
            stack.enter_context(started(inspect))
            stack.enter_context(started(page))
            assert page.port == 0
        until(lambda: responds(path))
        until(lambda: page.port)


@contextmanager
def used_up_descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the process open no socket, without a limit that the test's own files would meet."""

    class NoSocket(socket.socket):
        def __init__(self, *_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", NoSocket)
        yield


@pytest.mark.parametrize("kind", ["socket", "page"])
def test_a_server_that_has_not_listened_ends_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retried_listening, "RETRY_SECONDS", 3600.0)
    path = tmp_path / "agent.sock"
    with listening(path), socket.create_server(("127.0.0.1", 0)) as taken:
        server: InspectServer | PageServer = (
            InspectServer(str(path), agent(), Turns())
            if kind == "socket"
            else page_server(taken.getsockname()[1])
        )
        with started(server):
            pass
        # The socket is another process's.
        assert path.exists()


def page_server(port: int, counters: Callable[[], ConnectionCounters] | None = None) -> PageServer:
    return PageServer(ListenAddress(parse_address("127.0.0.1"), port), agent(), Turns(), counters)


def read(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
        return cast(bytes, response.read())


def test_a_port_that_is_taken_is_bound_when_it_is_free(caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            page = page_server(port)
            stack.enter_context(started(page))
            assert page.port == 0
            (line,) = caplog.messages
            assert "Address already in use; retrying every second" in line
        until(lambda: page.port == port)
        assert b"web" in read(port, "/")


NONE = b'"connections":null'


class Opened:
    """Connection counters whose kernel refuses the first two tries to open them."""

    def __init__(self) -> None:
        self.errors = [
            KernelError("no table", errno.ENOENT),
            OSError(errno.EMFILE, "Too many open files"),
        ]
        self.reads = 0

    def __call__(self) -> ConnectionCounters:
        if self.errors:
            raise self.errors.pop()
        return cast(ConnectionCounters, self)

    def services(self) -> object:
        self.reads += 1
        return self

    def since(self, _: object) -> dict[str, int]:
        return {"web": 7}

    def close(self) -> None:
        pass


def test_counters_that_cannot_be_opened_are_opened_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "COUNT_EVERY", 0.01)
    opened = Opened()
    page = page_server(0, opened)
    with started(page):
        # The request for the charts makes a viewer, without whom nothing is counted.
        until(lambda: b'"connections":' in read(page.port, "/timeline").replace(NONE, b""))
    assert opened.errors == []
