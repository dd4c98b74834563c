"""With several API servers (`--master URL,URL`), a working one is found within ten seconds."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from pyproxy_lab.apiserver.faults import ErrorStatus, HalfOpen
from pyproxy_lab.apiserver.server import ApiServer

from pyproxy.source import client
from pyproxy.source.connect import connect
from tests.chaos.objects import numbered_service, numbered_slice
from tests.chaos.table_agent import agent, api_server
from tests.ports import reserved_port
from tests.source.scripted import serving

PROMISE = 10.0
"""Seconds until the next server is tried."""


def test_every_kind_of_dead_server_costs_less_than_ten_seconds() -> None:
    assert 2 * client.CONNECT_TIMEOUT < PROMISE
    assert client.HEAD_TIMEOUT < PROMISE


@contextmanager
def refusing() -> Iterator[str]:
    """An address that refuses connections."""
    with reserved_port() as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def swallowing() -> Iterator[str]:
    """An address that drops connections, because its accept queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0), backlog=0)))
        address = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(closing(socket.socket()))
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"


@contextmanager
def hanging() -> Iterator[str]:
    """A server that accepts requests and never responds."""
    with serving(lambda exchange: exchange.hold()) as server:
        yield server.url


@contextmanager
def failing() -> Iterator[str]:
    """A server that responds to every request with 503."""
    with serving(lambda exchange: exchange.fail(503)) as server:
        yield server.url


DEAD = {
    "refuses": refusing,
    "swallows": swallowing,
    "hangs": hanging,
    "fails": failing,
}


@pytest.mark.parametrize("dead", DEAD)
def test_a_server_that_is_dead_at_the_start_is_skipped(
    dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONNECT_TIMEOUT", 0.4)
    monkeypatch.setattr(client, "HEAD_TIMEOUT", 0.4)
    with DEAD[dead]() as url, api_server() as server, agent(url, server) as rig:
        rig.until_equal(server)


@pytest.mark.parametrize("how", ["away", "fails", "hangs"])
def test_a_server_that_dies_during_a_watch_is_replaced(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's servers share one store; here the second one has newer objects."""
    monkeypatch.setattr(client, "HEAD_TIMEOUT", 0.4)
    with api_server() as first, api_server() as second, agent(first, second, silence=0.5) as rig:
        rig.until_equal(first)
        rig.dataplane.keep()
        for number in range(10, 20):
            second.load([numbered_service(number), numbered_slice(number, [1])])
        with _dead(first, how):
            rig.until_equal(second)
        assert rig.dataplane.lost == []
        second.load([numbered_slice(10, [2, 3])])
        rig.until_equal(second)


@contextmanager
def _dead(server: ApiServer, how: str) -> Iterator[None]:
    if how == "away":
        with server.away():
            yield
        return
    with _hangs(server) if how == "hangs" else _fails(server):
        yield


@contextmanager
def _fails(server: ApiServer) -> Iterator[None]:
    server.faults.set(ErrorStatus(500))
    server.close_watches()
    yield


@contextmanager
def _hangs(server: ApiServer) -> Iterator[None]:
    """Only the kernel accepts connections: the process is stopped."""
    port = int(server.url.rpartition(":")[2])
    server.faults.set(HalfOpen())
    with server.away(), serving(lambda exchange: exchange.hold(), port):
        yield


def test_5xx_from_one_of_two_servers_is_left_behind() -> None:
    with api_server() as bad, api_server() as good, agent(bad, good) as rig:
        rig.until_equal(bad)
        good.load([numbered_service(76), numbered_slice(76, [1])])
        bad.faults.set(ErrorStatus(500))
        bad.close_watches()
        rig.until_equal(good)
        # Each kind finds the working server on its own, and stays with it.
        rig.until(lambda: good.watch_count == 3, "all kinds watch the working server")
        met = bad.faults.met[ErrorStatus]
        good.close_watches()
        good.load([numbered_service(77), numbered_slice(77, [1])])
        rig.until_equal(good)
        assert bad.faults.met[ErrorStatus] == met


def test_master_names_several_servers() -> None:
    with refusing() as dead, api_server() as server:
        made = connect("", f"{dead},{server.url}")
        response = made.get("/version", {})
        response.close()
        assert made.host == server.url


def test_a_watch_may_be_silent_for_longer_than_a_response_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A watch waits as long with several servers as with one."""
    monkeypatch.setattr(client, "HEAD_TIMEOUT", 0.4)
    with api_server() as server, refusing() as dead, agent(server, dead, silence=3600.0) as rig:
        rig.until_equal(server)
        rig.until(lambda: server.watch_count == 3, "each kind has one watch")
        # Part of the time after which a client with a short time-out would leave.
        time.sleep(1.0)
        assert server.watch_count == 3
        assert rig.health.is_healthy()
        server.load([numbered_service(5), numbered_slice(5, [1])])
        rig.until_equal(server)
        assert server.watch_count == 3
