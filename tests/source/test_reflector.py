"""List and watch against a real HTTP server: requests, and events from its responses."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from urllib3 import BaseHTTPResponse

from pyproxy.model.events import Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName, Service
from pyproxy.source import reflector
from pyproxy.source.connections import set_read_timeout
from pyproxy.source.kubernetes import SELECTOR
from tests.waiting import until

from .scripted import (
    NODES,
    SERVICES,
    SLICES,
    Exchange,
    Pace,
    a_service,
    bookmark,
    end_of_list,
    following,
    gone,
    listed,
    quiet,
    services,
    serving,
    stream,
)


def test_lists_and_watches_have_the_selectors() -> None:
    with serving(quiet) as server, following(server.url) as (recorder, _):
        until(lambda: len(server.seen) == 4)
        # The fourth request is for the names of Nodes, because this Node does not exist.
        assert [e.query for e in server.seen if "limit" in e.query] == [{"limit": "500"}]
        by_route = {e.route: e.query for e in server.seen if "limit" not in e.query}
        recorder.until(lambda seen: seen == ["="])
        until(lambda: sum(isinstance(event, Synced) for event in recorder.events) == 3)
    assert by_route[SERVICES]["labelSelector"] == by_route[SLICES]["labelSelector"] == SELECTOR
    assert by_route[NODES]["fieldSelector"] == "metadata.name=node-a"
    for query in by_route.values():
        assert (
            query["watch"] == query["allowWatchBookmarks"] == query["sendInitialEvents"] == "true"
        )
        assert query["resourceVersionMatch"] == "NotOlderThan"
        assert 1800 <= int(query["timeoutSeconds"]) <= 3600
    # The list of a Node that does not exist yet is complete and empty.
    assert Synced(Kind.NODE, frozenset()) in recorder.events


def test_a_streaming_list_and_the_changes_after_it() -> None:
    events = [
        ("ADDED", a_service("a")),
        ("ADDED", a_service("b")),
        end_of_list("5"),
        ("MODIFIED", a_service("a", "6")),
        ("DELETED", a_service("b", "7")),
        ("MODIFIED", a_service("a", "8") | {"spec": {"clusterIP": "None"}}),
    ]
    before = time.monotonic()
    with (
        serving(services(lambda exchange: stream(exchange, *events))) as server,
        following(server.url) as (recorder, source),
    ):
        seen = recorder.until(lambda seen: len(seen) == 6)
        assert source.age() <= time.monotonic() - before
    assert seen == ["+a", "+b", "=a,b", "+a", "-b", "-a"]
    upserts = [event for event in recorder.events if isinstance(event, Upsert)]
    assert all(before < event.read_at <= time.monotonic() for event in upserts)


def test_the_silence_of_a_list_is_not_that_of_the_watch_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silences: list[tuple[float, float]] = []

    def record(response: BaseHTTPResponse, seconds: float) -> None:
        sock = response.connection.sock  # type: ignore[union-attr]
        before = sock.gettimeout()
        set_read_timeout(response, seconds)
        silences.append((before, sock.gettimeout()))

    monkeypatch.setattr(reflector, "set_read_timeout", record)
    events = [end_of_list("5"), ("ADDED", a_service("a", "6"))]
    with (
        serving(services(lambda exchange: stream(exchange, *events))) as server,
        following(server.url, silence=3600.0) as (recorder, _),
    ):
        assert recorder.until(lambda seen: "+a" in seen) == ["=", "+a"]
        assert len(server.requests_for(SERVICES)) == 1
    # Each kind lists and watches by one response.
    assert set(silences) == {(reflector.LISTING_SILENCE, 3600.0)}


def test_changes_within_a_streaming_list() -> None:
    events = [
        ("ADDED", a_service("a")),
        ("ADDED", a_service("b")),
        ("ADDED", a_service("c")),
        ("DELETED", a_service("b")),
        ("MODIFIED", a_service("c") | {"spec": {"type": "ExternalName"}}),
        end_of_list("5"),
    ]
    with (
        serving(services(lambda exchange: stream(exchange, *events))) as server,
        following(server.url) as (recorder, _),
    ):
        seen = recorder.until(lambda seen: len(seen) == 6)
    assert seen[-1] == "=a"


@pytest.mark.parametrize("status", [400, 422])
def test_pages_are_used_without_streaming_lists(status: int) -> None:
    def script(exchange: Exchange) -> None:
        query = exchange.query
        if query.get("sendInitialEvents"):
            exchange.fail(status)
        elif query.get("watch"):
            stream(exchange, ("ADDED", a_service("d", "10")))
        elif query.get("continue"):
            exchange.respond(listed(SERVICES, [a_service("c")], "9"))
        else:
            exchange.respond(listed(SERVICES, [a_service("a"), a_service("b")], "9", "more"))

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        seen = recorder.until(lambda seen: "+d" in seen)
    assert seen == ["+a", "+b", "+c", "=a,b,c", "+d"]
    pages = server.requests_for(SERVICES, limit="500")
    first, second = (e.query for e in pages)
    assert (first["resourceVersion"], second["continue"]) == ("0", "more")
    assert "resourceVersion" not in second
    (watch,) = server.requests_for(SERVICES, resourceVersion="9", watch="true")
    assert "sendInitialEvents" not in watch.query
    # Lists may be compressed; a proxy that compressed a watch would hold its events back.
    assert [each.headers["accept-encoding"] for each in pages] == ["gzip", "gzip"]
    assert watch.headers["accept-encoding"] == "identity"


def test_a_server_that_ignores_send_initial_events() -> None:
    def script(exchange: Exchange) -> None:
        if not exchange.query.get("watch"):
            exchange.respond(listed(SERVICES, [a_service("a")], "9"))
        elif exchange.query.get("resourceVersion"):
            quiet(exchange)
        else:
            stream(exchange, ("ADDED", a_service("a")), bookmark("8"))

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        recorder.until(lambda seen: seen[-1:] == ["=a"])
    assert len(server.requests_for(SERVICES, sendInitialEvents="true")) == 1


def test_pages_are_used_after_incomplete_streaming_lists() -> None:
    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents"):
            stream(exchange, ("ADDED", a_service("a")))
        elif exchange.query.get("watch"):
            exchange.begin()
            exchange.hold()
        else:
            exchange.respond(listed(SERVICES, [a_service("a")], "9"))

    with (
        serving(services(script)) as server,
        following(server.url, silence=0.2) as (recorder, _),
    ):
        recorder.until(lambda seen: seen[-1:] == ["=a"])
    assert len(server.requests_for(SERVICES, sendInitialEvents="true")) == 2


@pytest.mark.parametrize("in_stream", [True, False])
def test_410_starts_a_new_list(in_stream: bool) -> None:
    lists = [["a", "b"], ["b", "c"]]

    def script(exchange: Exchange) -> None:
        if exchange.query.get("resourceVersion") == "5":
            if in_stream:
                gone(exchange)
            else:
                exchange.fail(410)
        elif exchange.query.get("resourceVersion"):
            exchange.begin()
            exchange.hold()
        else:
            names = lists.pop(0)
            version = "5" if lists else "50"
            events = [("ADDED", a_service(name)) for name in names]
            stream(exchange, *events, end_of_list(version), hold=False)

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        seen = recorder.until(lambda seen: "=b,c" in seen)
    # An object that the second list does not name is deleted without a Delete event.
    assert seen == ["+a", "+b", "=a,b", "+b", "+c", "=b,c"]


@pytest.mark.parametrize(
    "event", [bookmark("7"), ("ADDED", a_service("z", "9")), ("MODIFIED", a_service("a", "10"))]
)
def test_an_older_version_starts_a_new_list(event: tuple[str, object]) -> None:
    """Objects of an older history are emitted only as part of a complete list."""

    def script(exchange: Exchange) -> None:
        if exchange.query.get("resourceVersion"):
            stream(exchange, ("MODIFIED", a_service("a", "11")), event)
        elif len(server.requests_for(SERVICES, sendInitialEvents="true")) == 1:
            stream(exchange, ("ADDED", a_service("a")), end_of_list("10"), hold=False)
        else:
            stream(exchange, ("ADDED", a_service("b")), end_of_list("8"))

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        seen = recorder.until(lambda seen: "=b" in seen)
    assert seen == ["+a", "=a", "+a", "+b", "=b"]


def test_lists_back_off_while_every_watch_gets_410() -> None:
    def script(exchange: Exchange) -> None:
        if exchange.query.get("resourceVersion"):
            gone(exchange)
        else:
            stream(exchange, end_of_list("10"), hold=False)

    clock = Pace()
    with serving(services(script)) as server, following(server.url, clock=clock):
        until(lambda: len(clock.waits) > 40)
    assert max(clock.waits) > 5


@pytest.mark.parametrize("status", [400, 504])
def test_a_rejected_version_starts_a_new_list(status: int) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.query.get("resourceVersion") == "10":
            exchange.fail(status, "Too large resource version")
        elif exchange.query.get("resourceVersion"):
            quiet(exchange)
        else:
            version = "8" if server.requests_for(SERVICES, resourceVersion="10") else "10"
            stream(exchange, end_of_list(version), hold=False)

    with serving(services(script)) as server, following(server.url) as (recorder, _):
        recorder.until(lambda seen: seen == ["=", "="])


def test_an_expired_continue_token_starts_one_list_without_pages() -> None:
    def script(exchange: Exchange) -> None:
        query = exchange.query
        if query.get("sendInitialEvents"):
            exchange.fail(422)
        elif query.get("watch"):
            exchange.begin()
            exchange.hold()
        elif query.get("continue"):
            exchange.fail(410)
        elif query.get("limit"):
            exchange.respond(listed(SERVICES, [a_service("a")], "9", "more"))
        else:
            assert "resourceVersion" not in query
            exchange.respond(listed(SERVICES, [a_service("a"), a_service("b")], "9"))

    clock = Pace()
    with serving(services(script)) as server, following(server.url, clock=clock) as (recorder, _):
        seen = recorder.until(lambda seen: bool(seen) and seen[-1][0] == "=")
    assert seen == ["+a", "+a", "+b", "=a,b"]
    # The first list of a node is not delayed as one after an outage is.
    assert max(clock.waits) <= 0.4


def test_a_watch_that_keeps_ending_continues_without_a_new_list() -> None:
    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents"):
            stream(exchange, end_of_list("5"), hold=False)
        else:
            version = int(exchange.query["resourceVersion"]) + 1
            if version < 10:
                event = ("ADDED", a_service(f"s{version}", str(version)))
                stream(exchange, event, bookmark(str(version)), hold=False)
            else:
                stream(exchange, hold=False)

    clock = Pace()
    with serving(services(script)) as server, following(server.url, clock=clock) as (recorder, _):
        seen = recorder.until(lambda seen: len(seen) == 5)
        until(lambda: len(server.requests_for(SERVICES, resourceVersion="9")) > 2)
    assert seen == ["=", "+s6", "+s7", "+s8", "+s9"]
    assert len(server.requests_for(SERVICES, sendInitialEvents="true")) == 1
    # A watch that ends at once without an event is not restarted at once.
    assert len(clock.waits) >= 2
    assert all(0 < wait <= 1 for wait in clock.waits)


def test_a_recorded_stream_of_a_real_server() -> None:
    recorded = json.loads((Path(__file__).parent / "streaming-list-v1.36.2.json").read_text())

    def script(exchange: Exchange) -> None:
        if exchange.route == SLICES:
            events = [(event["type"], event["object"]) for event in recorded]
            stream(exchange, *events)
        else:
            quiet(exchange)

    with serving(script) as server, following(server.url) as (recorder, _):
        until(lambda: any(type(event).__name__ == "Delete" for event in recorder.events))
        slices = [e for e in recorder.events if getattr(e, "kind", None) is Kind.ENDPOINT_SLICE]
    assert Synced(Kind.ENDPOINT_SLICE, frozenset({ObjectName("rec", "web-1")})) in slices
    assert not any(isinstance(e, Upsert) and isinstance(e.obj, Service) for e in recorder.events)
