"""Responses without an end: frames, pages, error bodies and compressed bodies are bounded."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import time
import tracemalloc
from collections.abc import Callable

import pytest

from pyproxy.source import lookup
from pyproxy.source.body import (
    LARGEST_FRAME,
    LARGEST_PAGE,
    LARGEST_STATUS,
    TooLargeError,
    read_body,
)
from pyproxy.source.client import ApiStatusError
from tests.source.scripted import (
    SERVICES,
    Exchange,
    Pace,
    a_service,
    client_of,
    end_of_list,
    following,
    listed,
    quiet,
    services,
    serving,
)
from tests.waiting import until

BLOCK = b"x" * (1 << 20)
SLACK = 32 << 20
"""Bytes that sockets and the server's own buffers may hold beyond a limit."""


class Endless:
    """Sends blocks until the client disconnects, and counts the bytes."""

    def __init__(self, block: bytes = BLOCK) -> None:
        self.block = block
        self.sent: list[int] = []

    def __call__(self, exchange: Exchange) -> None:
        self.sent.append(0)
        try:
            # Twice the limit of a page, so that a client without limits fails instead of hanging.
            while self.sent[-1] < 2 * LARGEST_PAGE:
                exchange.chunk(self.block)
                self.sent[-1] += len(self.block)
        except OSError:
            return
        exchange.end()


def test_an_endless_line_of_a_watch(caplog: pytest.LogCaptureFixture) -> None:
    endless = Endless()

    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents") and endless.sent[3:]:
            exchange.begin()
            exchange.events([("ADDED", a_service("b")), end_of_list("9")])
            exchange.hold()
        elif exchange.query.get("watch"):
            exchange.begin()
            if exchange.query.get("sendInitialEvents"):
                exchange.events([("ADDED", a_service("a")), end_of_list("5")])
            endless(exchange)
        else:
            quiet(exchange)

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        seen = recorder.until(lambda seen: "=b" in seen)
    # The Services of the last complete list stay until the next one.
    assert seen[:2] == ["+a", "=a"]
    assert max(endless.sent) < LARGEST_FRAME + SLACK
    lines = [r.getMessage() for r in caplog.records if "16777216" in r.getMessage()]
    assert 1 <= len(lines) <= len(endless.sent)


@pytest.mark.parametrize("declared", [True, False], ids=["Content-Length", "chunked"])
def test_a_page_that_is_too_large_is_requested_in_smaller_pages(declared: bool) -> None:
    endless = Endless(json.dumps([BLOCK.decode()]).encode())

    def script(exchange: Exchange) -> None:
        query = exchange.query
        if query.get("watch"):
            exchange.fail(422) if query.get("sendInitialEvents") else exchange.hold()
        elif query.get("resourceVersion") == "0" or int(query.get("limit", "500")) > 125:
            if declared:
                exchange.send_response(200)
                exchange.send_header("Content-Type", "application/json")
                exchange.send_header("Content-Length", str(LARGEST_PAGE + 1))
                exchange.end_headers()
                exchange.close_connection = True
            else:
                exchange.begin()
                endless(exchange)
        elif query.get("continue"):
            exchange.respond(listed(SERVICES, [a_service("b")], "5"))
        else:
            exchange.respond(listed(SERVICES, [a_service("a")], "5", "more"))

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        recorder.until(lambda seen: "=a,b" in seen)
        queries = [e.query for e in server.requests_for(SERVICES) if "watch" not in e.query]
    assert [(q["limit"], q.get("resourceVersion")) for q in queries] == [
        ("500", "0"),
        ("500", None),
        ("250", None),
        ("125", None),
        ("125", None),
    ]
    assert all(sent < LARGEST_PAGE + SLACK for sent in endless.sent)


def gzipped(exchange: Exchange, body: bytes, status: int = 200) -> None:
    exchange.respond(body, status, {"Content-Encoding": "gzip"})


BOMB = gzip.compress(bytes(64 << 20), 9) * 20
"""1.3 MB that decompress to 1.3 GB."""


def test_a_compressed_body_is_held_up_to_the_limit() -> None:
    with serving(lambda exchange: gzipped(exchange, BOMB)) as server:
        response = client_of(server.url).get("/", {})
        tracemalloc.start()
        try:
            with pytest.raises(TooLargeError, match="more than 4194304 bytes"):
                read_body(response, 4 << 20)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
            response.close()


def test_compressed_responses_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    """A page, a frame, an error and the response to a POST that decompress to 1.3 GB each."""

    def script(exchange: Exchange) -> None:
        gzipped(exchange, BOMB, 500 if exchange.query.get("limit") else 200)

    with serving(services(script)) as server, following(server.url) as _:
        until(lambda: server.requests_for(SERVICES, limit="500")[2:])
    assert "an event of a watch has more than 16777216 bytes" in caplog.text
    assert "500 Internal Server Error" in caplog.text
    with serving(lambda exchange: gzipped(exchange, BOMB)) as server:
        with pytest.raises(TooLargeError):
            client_of(server.url).post("/", b"{}")
        with pytest.raises(TooLargeError):
            lookup._list(client_of(server.url), "/pods", {}, lookup._Pods)


def test_compressed_lists_are_read(caplog: pytest.LogCaptureFixture) -> None:
    """A proxy that compresses without being asked is understood."""

    def script(exchange: Exchange) -> None:
        if exchange.query.get("watch"):
            exchange.fail(422) if exchange.query.get("sendInitialEvents") else exchange.hold()
        else:
            body = listed(SERVICES, [a_service("a")], "5")
            gzipped(exchange, gzip.compress(json.dumps(body).encode()))

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        assert recorder.until(lambda seen: "=a" in seen) == ["+a", "=a"]


@pytest.mark.parametrize("method", ["get", "post"])
def test_an_endless_error_is_read_up_to_a_few_kilobytes(method: str) -> None:
    endless = Endless()

    def script(exchange: Exchange) -> None:
        exchange.send_response(500)
        exchange.send_header("Content-Type", "application/json")
        exchange.send_header("Transfer-Encoding", "chunked")
        exchange.end_headers()
        exchange.chunk(b'{"message":"')
        endless(exchange)

    with serving(script) as server:
        client = client_of(server.url)
        call: Callable[[], object] = {
            "get": lambda: client.get("/", {}),
            "post": lambda: client.post("/", b"{}"),
        }[method]
        with pytest.raises(ApiStatusError) as caught:
            call()
        until(lambda: endless.sent)
    assert len(str(caught.value)) < LARGEST_STATUS
    assert endless.sent[0] < SLACK


def test_lists_without_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """A continue token on every page, and pages without objects."""
    caplog.set_level(logging.INFO)

    def script(exchange: Exchange) -> None:
        if exchange.query.get("watch"):
            exchange.fail(422)
        else:
            items = [] if exchange.query.get("continue") else [a_service("a")]
            exchange.respond(listed(SERVICES, items, "5", "again"))

    with serving(services(script)) as server, following(server.url):
        until(lambda: server.requests_for(SERVICES, limit="500")[5:])
    assert "an empty page within a list" in caplog.text


class Jumping(Pace):
    """A clock that jumps ten seconds with each byte that a server sends."""

    time = 1_000.0

    def now(self) -> float:
        return self.time


@pytest.mark.parametrize("streaming", [True, False], ids=["streaming list", "page"])
def test_a_list_of_which_a_byte_arrives_now_and_then_is_given_up(
    streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    clock, dripped = Jumping(), list[int]()

    def drip(exchange: Exchange) -> None:
        dripped.append(0)
        exchange.begin()
        with contextlib.suppress(OSError):
            while dripped[-1] < 1_000:
                exchange.chunk(b"\n" if streaming else b" ")
                clock.time += 10
                dripped[-1] += 1
                # So that the client reads a byte at a time.
                time.sleep(0.005)
        exchange.close_connection = True

    def script(exchange: Exchange) -> None:
        query = exchange.query
        is_list = "sendInitialEvents" in query if streaming else "watch" not in query
        if is_list and len(dripped) < 2:
            drip(exchange)
        elif is_list and streaming:
            exchange.begin()
            exchange.events([("ADDED", a_service("a")), end_of_list("5")])
            exchange.hold()
        elif "watch" in query:
            exchange.fail(422) if "sendInitialEvents" in query else exchange.hold()
        else:
            exchange.respond(listed(SERVICES, [a_service("a")], "5"))

    with (
        serving(services(script)) as server,
        following(server.url, clock=clock) as (recorder, _),
    ):
        assert recorder.until(lambda seen: "=a" in seen) == ["+a", "=a"]
    # 60 s, and what the client reads late.
    assert max(dripped[:2]) < 500
    assert "bytes of a list within" in caplog.text
