"""Readers of the page: many, greedy, idle or hostile ones."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import islice

import msgspec
import pytest

from pyproxy.config.settings import ListenAddress
from pyproxy.errors import Problem
from pyproxy.inspect.http_server import peer_of
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.inspect.turns import Turns
from pyproxy.model.address import Family, Port, Protocol, parse_address
from pyproxy.model.objects import Endpoint, EndpointSlice, Kind, ObjectName, ServicePort, SlicePort
from pyproxy.ui import pages
from pyproxy.ui.recent_pages import REFRESH_SECONDS
from pyproxy.ui.search import SearchQuery, search
from pyproxy.ui.server import PageServer, change_events
from tests.ui.snapshots import HOSTILE, FakeAgent, service, snapshot

READERS = 8


@contextmanager
def serving(found: Snapshot) -> Iterator[int]:
    agent = FakeAgent(found)
    server = PageServer(ListenAddress(parse_address("127.0.0.1"), 0), agent, Turns())
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


def connected(port: int, request: bytes) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port), 60)
    found.sendall(request)
    return found


def get(port: int, path: str = "/", headers: str = "Host: localhost") -> bytes:
    with closing(connected(port, f"GET {path} HTTP/1.0\r\n{headers}\r\n\r\n".encode())) as client:
        response = b""
        while received := client.recv(1 << 16):
            response += received
    return response


def test_a_page_is_rendered_once_for_all_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered, original = [0], pages.overview

    def overview(found: Snapshot, query: SearchQuery) -> str:
        rendered[0] += 1
        return original(found, query)

    monkeypatch.setattr(pages, "overview", overview)
    with serving(snapshot(service("web"))) as port, ThreadPoolExecutor(READERS) as pool:
        began = time.monotonic()
        responses = list(pool.map(lambda _: get(port), range(20 * READERS)))
        periods = (time.monotonic() - began) / REFRESH_SECONDS
    assert {response.partition(b"\r\n")[0] for response in responses} == {b"HTTP/1.0 200 OK"}
    # Two for a period: the page may have aged between the request of a snapshot and its arrival.
    assert rendered[0] <= 2 * (periods + 1)


def test_idle_clients_and_open_pages_do_not_keep_a_reader_out() -> None:
    with serving(snapshot(service("web"))) as port, ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(closing(connected(port, b"GET / HT")))
            stream = connected(port, b"GET /changes HTTP/1.0\r\nHost: localhost\r\n\r\n")
            stack.enter_context(closing(stream))
            assert b"200" in stream.recv(64)
        for _ in range(5):
            assert b"shop/web" in get(port)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_a_host_with_many_ipv6_addresses_is_one_peer(one: str, other: str, same: bool) -> None:
    assert (peer_of((one, 1, 0, 0)) == peer_of((other, 2, 0, 0))) is same


def test_changes_are_one_event_in_each_period_and_come_after_older_pages() -> None:
    now, changes, seen = [0], [0], list[tuple[int, bytes]]()

    def sleep(seconds: float) -> None:
        assert seconds == REFRESH_SECONDS
        now[0] += 1
        changes[0] += 1000 if now[0] in (2, 3) else 0

    for line in islice(change_events(lambda: changes[0], sleep), 8):
        seen.append((now[0], line))
    # A page that was rendered before the change in period 2 is too old in period 3.
    assert [when for when, line in seen if line.startswith(b"data:")] == [3, 4]


def large_service(ports: int, endpoints: int) -> Snapshot:
    made = msgspec.structs.replace(
        service("large"),
        ports=tuple(
            ServicePort(f"p{number}", Protocol.TCP, Port(number + 1), node_port=Port(0))
            for number in range(ports)
        ),
        problems=tuple(
            Problem(Kind.SERVICE.value, "shop/large", f"spec.externalIPs[{number}]", HOSTILE)
            for number in range(2000)
        ),
    )
    part = EndpointSlice(
        ObjectName("shop", "large-1"),
        made.name,
        Family.IPV4,
        (
            *(SlicePort(f"p{number}", Protocol.TCP, Port(80)) for number in range(ports)),
            SlicePort("unknown", Protocol.TCP, Port(81)),
        ),
        tuple(
            Endpoint(parse_address(f"10.244.{number >> 8}.{number & 255}"), zone=HOSTILE)
            for number in range(endpoints)
        ),
    )
    return msgspec.structs.replace(snapshot(made), slices={part.name: part})


def test_the_pages_of_a_giant_service_are_as_large_as_those_of_a_large_one() -> None:
    large, giant = large_service(30, 500), large_service(60, 1000)
    for one, other in (
        (pages.service(large, "shop/large"), pages.service(giant, "shop/large")),
        (pages.overview(large, SearchQuery()), pages.overview(giant, SearchQuery())),
    ):
        assert len(other) < 1.05 * len(one)
        assert "<img" not in other
        assert "more" in other


def test_a_search_compares_a_bounded_number_of_words() -> None:
    found = snapshot(service("web"))
    assert search(found, SearchQuery("we " * 3000 + "absent")).total == 1
    assert search(found, SearchQuery(" ".join("shopweb"[:4] for _ in range(20)))).total == 1
    assert search(found, SearchQuery("we absent")).total == 0


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET / HTTP/1.0\r\nHost: evil.example", b"403"),
        ("GET / HTTP/1.0", b"403"),
        ("POST / HTTP/1.0\r\nHost: localhost\r\nContent-Length: 99999999", b"501"),
        ("GET /services/../../etc/passwd HTTP/1.0\r\nHost: localhost", b"404"),
        ("GET /static/%2e%2e/server.py HTTP/1.0\r\nHost: localhost", b"404"),
        (f"{HOSTILE[:4]} / HTTP/1.0\r\nHost: localhost", b"501"),
        ("GET / HTTP/9.9.9\r\nHost: localhost", b"400"),
    ],
)
def test_every_response_forbids_scripts_of_others(request_line: str, status: bytes) -> None:
    with (
        serving(snapshot(service("web"))) as port,
        closing(connected(port, f"{request_line}\r\n\r\n".encode())) as client,
    ):
        head = client.recv(1 << 16)
        assert head.split()[1] == status
        assert b"default-src 'none'" in head
        assert b"nosniff" in head
        assert b"Access-Control-Allow-Origin" not in head
        assert b"Python" not in head
