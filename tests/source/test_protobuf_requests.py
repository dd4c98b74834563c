"""Lists, streaming lists and watches in protobuf: requests, framing, and events over HTTP."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pyproxy_lab.apiserver import protobuf
from pyproxy_lab.apiserver.faults import Cut
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings

from pyproxy.agent.sources import source_of
from pyproxy.model.events import Event, Upsert
from pyproxy.source import protobuf_stream, stream
from pyproxy.source.api_errors import ApiStatusError
from pyproxy.source.body import TooLargeError
from pyproxy.source.client import Client
from pyproxy.source.kubernetes import KubernetesSource
from pyproxy.source.media_types import JSON_TYPE, PROTOBUF_TYPE, accepted
from pyproxy.source.stream import ConnectionLostError, GoneError, MalformedResponseError
from tests.config.parsing import parse
from tests.config.test_file import HEAD
from tests.lab.api import Api
from tests.lab.recorded import recorded
from tests.waiting import until

from .scripted import (
    SERVICES,
    Exchange,
    Pace,
    Recorder,
    a_service,
    client_of,
    end_of_list,
    listed,
    quiet,
    services,
    serving,
)
from .scripted import stream as send_json

BOTH = f"{PROTOBUF_TYPE},{JSON_TYPE}"
LISTED = recorded("streaming list of services")


@pytest.mark.parametrize(
    ("content_type", "accept_content_types", "expected"),
    [
        ("application/json", "", JSON_TYPE),
        ("", "", JSON_TYPE),
        ("application/vnd.kubernetes.protobuf", "", BOTH),
        ("Application/vnd.Kubernetes.protobuf; charset=x", "", BOTH),
        ("application/yaml", "", JSON_TYPE),
        ("application/json", "application/vnd.kubernetes.protobuf,application/json", BOTH),
        ("application/vnd.kubernetes.protobuf", "application/json", JSON_TYPE),
        ("application/json", "application/cbor, application/vnd.kubernetes.protobuf", BOTH),
        (
            "",
            "application/json,application/vnd.kubernetes.protobuf",
            f"{JSON_TYPE},{PROTOBUF_TYPE}",
        ),
        ("x\r\ny: z", "", JSON_TYPE),
    ],
)
def test_accepted_types(content_type: str, accept_content_types: str, expected: str) -> None:
    assert accepted(content_type, accept_content_types) == expected


@contextmanager
def following(url: str, accept: str = BOTH) -> Iterator[tuple[Recorder, KubernetesSource]]:
    recorder = Recorder()
    source = KubernetesSource(
        client_of(url), "node-a", recorder, silence=5.0, clock=Pace(), accept=accept
    )
    source.start()
    try:
        yield recorder, source
    finally:
        source.stop()


@pytest.mark.parametrize(
    ("flags", "connection", "expected"),
    [
        ([], None, BOTH),
        ([f"--kube-api-content-type={PROTOBUF_TYPE}"], None, BOTH),
        ([f"--kube-api-content-type={JSON_TYPE}"], None, JSON_TYPE),
        ([], {"contentType": JSON_TYPE}, JSON_TYPE),
        ([], {"contentType": ""}, BOTH),
        ([], {"contentType": PROTOBUF_TYPE}, BOTH),
        ([], {"contentType": PROTOBUF_TYPE, "acceptContentTypes": JSON_TYPE}, JSON_TYPE),
        ([], {"acceptContentTypes": BOTH}, BOTH),
    ],
)
def test_a_request_names_the_accepted_types(
    tmp_path: Path, flags: list[str], connection: dict[str, str] | None, expected: str
) -> None:
    if connection is not None:
        file = tmp_path / "config.conf"
        file.write_text(HEAD + yaml.safe_dump({"clientConnection": connection}))
        flags = [f"--config={file}"]
    settings = parse("--hostname-override=node-a", *flags)
    recorder = Recorder()
    with serving(quiet) as server:
        source = source_of(settings, client_of(server.url), recorder)
        source.start()
        try:
            recorder.until(lambda seen: seen == ["="])
            until(lambda: len(server.seen) == 4)
        finally:
            source.stop()
    found = {each.headers["accept"] for each in server.seen if "limit" not in each.query}
    assert found == {expected}
    # The names of Nodes are read as JSON.
    (names,) = (each for each in server.seen if "limit" in each.query)
    assert names.headers["accept"] == JSON_TYPE


def test_a_server_without_protobuf_is_read_as_json() -> None:
    @services
    def script(exchange: Exchange) -> None:
        send_json(exchange, ("ADDED", a_service("a")), end_of_list("5"))

    with serving(script) as server, following(server.url) as (recorder, _):
        assert recorder.until(lambda seen: len(seen) >= 2) == ["+a", "=a"]


@pytest.mark.parametrize("accept", [BOTH, JSON_TYPE])
def test_the_labs_server_without_protobuf(accept: str) -> None:
    with ApiServer.running(Settings(protobuf=False)) as server:
        Lab(server).load("a")
        with following(server.url, accept) as (recorder, _):
            recorder.until(lambda seen: "=a,kubernetes" in seen)
            Lab(server).load("b")
            recorder.until(lambda seen: "+b" in seen)


def test_a_server_that_rejects_protobuf_is_asked_for_json(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    @services
    def script(exchange: Exchange) -> None:
        if PROTOBUF_TYPE in exchange.headers["Accept"]:
            exchange.fail(406, "only the following media types are accepted: application/json")
        else:
            send_json(exchange, ("ADDED", a_service("a")), end_of_list("5"))

    with serving(script) as server, following(server.url) as (recorder, _):
        assert recorder.until(lambda seen: len(seen) >= 2) == ["+a", "=a"]
        asked = [each.headers["accept"] for each in server.requests_for(SERVICES)]
    assert asked == [BOTH, JSON_TYPE]
    assert "Service: the server rejects" in caplog.text
    assert not [each for each in caplog.records if each.levelno > logging.INFO]


def test_protobuf_is_not_expected_of_another_type() -> None:
    """A server that has switched the type, as behind a load balancer, is read by its answers."""
    answers = iter([True, False])

    @services
    def script(exchange: Exchange) -> None:
        if exchange.query.get("sendInitialEvents"):
            exchange.fail(400)
        elif exchange.query.get("watch"):
            exchange.hold()
        elif next(answers):
            token = "next"
            exchange.respond(listed(SERVICES, [a_service("a")], token=token))
        else:
            exchange.respond(page("b"), content_type=PROTOBUF_TYPE)

    with serving(script) as server, following(server.url) as (recorder, _):
        assert recorder.until(lambda seen: len(seen) >= 3) == ["+a", "+b", "=a,b"]


def page(name: str) -> bytes:
    raw = protobuf.encode("Service", a_service(name))
    return b"".join(protobuf.listing("v1", "ServiceList", {"resourceVersion": "9"}, [raw]))


@given(st.lists(st.integers(1, 200), max_size=80))
def test_frames_do_not_depend_on_the_chunks(sizes: list[int]) -> None:
    body, chunks, at = LISTED.body, [], 0
    for size in sizes:
        chunks.append(body[at : at + size])
        at += size
    chunks.append(body[at:])
    expected = [event[4:] for event in protobuf.events(body)]
    assert list(protobuf_stream.frames(chunks)) == expected


def test_a_watch_that_ends_within_an_event() -> None:
    for missing in (1, len(LISTED.body) - 3):
        with pytest.raises(ConnectionLostError):
            list(protobuf_stream.frames([LISTED.body[:-missing]]))
    assert list(protobuf_stream.frames([])) == []


@pytest.mark.parametrize("length", [101, 1 << 31, (1 << 32) - 1])
def test_an_event_that_is_too_large_is_refused_by_its_length(length: int) -> None:
    chunks = iter([length.to_bytes(4), b"must not be read"])
    with pytest.raises(TooLargeError):
        list(protobuf_stream.frames(chunks, limit=100))
    assert next(chunks) == b"must not be read"
    assert list(protobuf_stream.frames([(100).to_bytes(4), bytes(100)], limit=100)) == [bytes(100)]


@given(st.binary(max_size=60))
def test_malformed_events_and_lists(data: bytes) -> None:
    for raw in (data, b"k8s\0" + data):
        with pytest.raises(MalformedResponseError):
            protobuf_stream.object_list(raw, "ServiceList")
        event = protobuf.event("BOOKMARK", raw)[4:]
        try:
            protobuf_stream.bookmark(protobuf_stream.event(event).object)
        except MalformedResponseError:
            continue
    with pytest.raises(MalformedResponseError):
        protobuf_stream.event(data)


def test_a_list_of_another_kind() -> None:
    with pytest.raises(MalformedResponseError, match="is a ServiceList, not a NodeList"):
        protobuf_stream.object_list(recorded("list services").body, "NodeList")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ({"code": 410}, GoneError),
        ({"reason": "Expired"}, GoneError),
        ({"code": 422, "message": "no\nway"}, ApiStatusError),
        ({}, ApiStatusError),
    ],
)
def test_error_events_are_those_in_json(status: dict[str, object], error: type[Exception]) -> None:
    raw = protobuf.envelope("v1", "Status", protobuf.encode("Status", status))
    with pytest.raises(error) as caught:
        protobuf_stream.event(protobuf.event("ERROR", raw)[4:])
    with pytest.raises(error) as in_json:
        stream.event(memoryview(json.dumps({"type": "ERROR", "object": status}).encode()))
    assert str(caught.value) == str(in_json.value)


@pytest.mark.parametrize("name", ["not found", "unauthorised"])
def test_an_error_response_is_the_one_in_json(name: str) -> None:
    answer = recorded(name)

    def error_of(body: bytes, content_type: str) -> ApiStatusError:
        def script(exchange: Exchange) -> None:
            exchange.respond(body, answer.status, content_type=content_type)

        with serving(script) as server, pytest.raises(ApiStatusError) as caught:
            client_of(server.url).get(SERVICES, {}, accept=BOTH)
        return caught.value

    found, in_json = error_of(answer.body, PROTOBUF_TYPE), error_of(answer.twin, JSON_TYPE)
    assert str(found) == str(in_json)
    assert found.from_api
    assert found.status == in_json.status
    assert not error_of(b"k8s\0\xff", PROTOBUF_TYPE).from_api


class Lab:
    """The lab's server with recorded objects, and what sources of both formats read from it."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server

    def load(self, name: str, count: int = 1) -> None:
        obj = a_service(name)
        del obj["spec"]["clusterIP"]  # the server allocates one
        for each in range(count):
            obj["metadata"]["name"] = f"{name}-{each}" if count > 1 else name
            self.server.load([{"apiVersion": "v1", "kind": "Service", **obj}])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ApiServer.running(Settings()) as server:
        yield Lab(server)


def objects(events: list[Event]) -> list[object]:
    return [event.obj for event in events if isinstance(event, Upsert)]


def test_events_are_those_in_json(lab: Lab) -> None:
    lab.load("a", count=3)
    with (
        following(lab.server.url) as (recorder, _),
        following(lab.server.url, JSON_TYPE) as (in_json, _),
    ):
        for each in (recorder, in_json):
            each.until(lambda seen: "=a-0,a-1,a-2,kubernetes" in seen)
        lab.load("b")
        path = "/api/v1/namespaces/shop/services/a-1"
        delete(lab.server.url, path)
        for each in (recorder, in_json):
            each.until(lambda seen: {"+b", "-a-1"} <= set(seen))
        lab.server.expire_watches()
        lab.server.close_watches()
        lab.load("c")
        for each in (recorder, in_json):
            each.until(lambda seen: "+c" in seen)
        assert recorder.services() == in_json.services()
        assert objects(recorder.events) == objects(in_json.events)


def delete(url: str, path: str) -> None:
    Api(url).ok("DELETE", path)


def test_a_watch_that_is_cut_goes_on(lab: Lab) -> None:
    lab.load("a")
    with following(lab.server.url) as (recorder, _):
        recorder.until(lambda seen: "=a,kubernetes" in seen)
        lab.server.faults.set(Cut())
        lab.load("b")
        until(lambda: lab.server.faults.met[Cut] > 0)
        lab.server.faults.clear()
        recorder.until(lambda seen: "+b" in seen)


def test_one_malformed_object_of_a_watch_costs_only_itself() -> None:
    odd = protobuf.encode("Service", a_service("odd")).replace(b"10.96.0.1", b"10.96.0.\xff")
    good = protobuf.encode("Service", a_service("a"))
    events = [
        protobuf.event("ADDED", protobuf.envelope("v1", "Service", each)) for each in (odd, good)
    ]
    last = protobuf.events(LISTED.body)[-1]

    @services
    def script(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Content-Type", protobuf.STREAM_TYPE)
        exchange.send_header("Transfer-Encoding", "chunked")
        exchange.end_headers()
        for event in (*events, last):
            exchange.chunk(event)
        exchange.hold()

    with serving(script) as server, following(server.url) as (recorder, _):
        assert recorder.until(lambda seen: len(seen) >= 4) == ["-odd", "!shop/odd", "+a", "=a"]


def test_an_agent_that_reads_json_imports_no_protobuf() -> None:
    code = (
        "import sys, pyproxy.agent.sources, pyproxy.source.connect;"
        "sys.exit('google.protobuf' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_client_asks_for_json_by_default() -> None:
    with serving(quiet) as server:
        client: Client = client_of(server.url)
        client.get(SERVICES, {}).close()
    assert server.seen[0].headers["accept"] == JSON_TYPE
