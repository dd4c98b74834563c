"""Protobuf that the server reads and writes, as the recorded bytes of a kube-apiserver."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproxy_lab.apiserver import protobuf
from pyproxy_lab.apiserver.faults import Disorder, Faults
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings

from tests.lab.api import Api, Response
from tests.lab.recorded import TWINS, Recorded, recorded

BOTH = f"{protobuf.MEDIA_TYPE},application/json"
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NODES = "/api/v1/nodes"
SINCE = "?watch=true&resourceVersion=2&timeoutSeconds=1"
STREAM = (
    "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    "&allowWatchBookmarks=true&timeoutSeconds=1"
)


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


KIND = field(1, field(1, b"v1") + field(2, b"Namespace"))
LABEL = field(11, field(1, b"a") + field(2, b"b"))
NAMESPACE = field(1, field(1, b"shop") + field(2, b"") + LABEL)


def test_a_namespace() -> None:
    assert protobuf.decode(b"k8s\x00" + KIND + field(2, NAMESPACE)) == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"a": "b"}},
    }


def test_an_event() -> None:
    kind = field(1, field(1, b"events.k8s.io/v1") + field(2, b"Event"))
    # 1,000 s and 5,000 ns, as varints of the fields 1 and 2.
    moment = field(2, b"\x08\xe8\x07\x10\x88\x27")
    raw = moment + field(7, b"Starting") + field(8, field(1, b"Node") + field(3, b"node-a"))
    assert protobuf.decode(b"k8s\x00" + kind + field(2, raw)) == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "eventTime": "1970-01-01T00:16:40.000005Z",
        "reason": "Starting",
        "regarding": {"kind": "Node", "name": "node-a"},
    }


def test_a_kind_that_is_not_known() -> None:
    assert protobuf.decode(b"k8s\x00" + field(1, field(2, b"Job"))) is None


@pytest.mark.parametrize("body", [b"", b"{}", b"k8s\x00\x0a", b"k8s\x00\x0a\x7fx", b"k8s\x00\xff"])
def test_what_cannot_be_read(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|number|begin"):
        protobuf.decode(body)


@given(st.binary(max_size=60))
def test_no_bytes_do_harm(raw: bytes) -> None:
    try:
        found = protobuf.decode(b"k8s\x00" + KIND + field(2, raw))
    except ValueError:
        return
    assert found is not None


@pytest.mark.parametrize("answer", TWINS, ids=lambda answer: answer.name)
def test_the_bytes_of_a_real_server(answer: Recorded) -> None:
    if not answer.is_watch:
        assert encoded(json.loads(answer.twin)) == answer.body
        return
    events, found = answer.events(), protobuf.events(answer.body)
    assert len(events) <= len(found) <= len(events) + 1
    for event, received in zip(events, found, strict=False):
        wanted = encoded_event(event)
        if event["type"] == "BOOKMARK":
            assert versionless(received) == versionless(wanted)
        else:
            assert received == wanted


def versionless(event: bytes) -> bytes:
    """Leave out a resourceVersion of three digits."""
    return re.sub(rb"\x032\d\d", b"", event)


def encoded(answer: Any) -> bytes:
    """Encode the JSON of a list, an object or a Status."""
    api_version, kind = answer["apiVersion"], answer["kind"]
    if "items" not in answer:
        return protobuf.envelope(api_version, kind, protobuf.encode(kind, answer))
    items = [protobuf.encode(kind.removesuffix("List"), item) for item in answer["items"]]
    return b"".join(protobuf.listing(api_version, kind, answer["metadata"], items))


def encoded_event(event: Any) -> bytes:
    return protobuf.event(event["type"], encoded(event["object"]))


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer.running(Settings(token="t")) as running:
        for name in ("list services", "list slices", "list this node"):
            found = json.loads(recorded(name).twin)
            kind = {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List")}
            running.load([kind | item for item in found["items"]])
        yield running


def get(server: ApiServer, path: str, accept: str) -> Response:
    return Api(server.url, "t")("GET", path, Accept=accept)


@pytest.mark.parametrize(
    "path",
    [
        SERVICES,
        f"{SERVICES}?limit=2",
        SLICES,
        f"{NODES}?fieldSelector=metadata.name%3Dnode-a",
        "/api/v1/namespaces/shop/services/plain",
        "/api/v1/namespaces/shop/services/none",
        f"{SERVICES}?limit=x",
    ],
)
@pytest.mark.parametrize("accept", [BOTH, protobuf.MEDIA_TYPE, f"{protobuf.MEDIA_TYPE}, */*"])
def test_an_answer_is_the_one_in_json(server: ApiServer, path: str, accept: str) -> None:
    in_json = get(server, path, "application/json")
    response = get(server, path, accept)
    assert response.status == in_json.status
    assert response.headers["Content-Type"] == protobuf.MEDIA_TYPE
    assert response.raw == encoded(in_json.body)


def test_watches_are_the_ones_in_json(server: ApiServer) -> None:
    """All at once, because each lasts a second."""
    paths = [SERVICES + STREAM, SLICES + STREAM, f"{NODES}{SINCE}", f"{SLICES}{SINCE}"]
    with ThreadPoolExecutor(2 * len(paths)) as pool:
        in_json = list(pool.map(lambda path: get(server, path, "application/json"), paths))
        responses = list(pool.map(lambda path: get(server, path, BOTH), paths))
    for response, twin in zip(responses, in_json, strict=True):
        assert response.headers["Content-Type"] == protobuf.STREAM_TYPE
        events = [json.loads(line) for line in twin.raw.splitlines()]
        assert protobuf.events(response.raw) == [encoded_event(event) for event in events]
        assert events


def test_an_expired_watch_is_an_error_event(server: ApiServer) -> None:
    server.forget_history()
    path = SERVICES + SINCE
    response = get(server, path, BOTH)
    line = get(server, path, "application/json").raw
    assert response.raw == encoded_event(json.loads(line))
    assert json.loads(line)["object"]["code"] == 410


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (SERVICES, "*/*"),
        (SERVICES, f"application/json,{protobuf.MEDIA_TYPE}"),
        ("/api/v1/namespaces", BOTH),
        ("/version", BOTH),
    ],
)
def test_json_is_sent_to_others_and_of_other_kinds(
    server: ApiServer, path: str, accept: str
) -> None:
    response = get(server, path, accept)
    assert response.headers["Content-Type"] == "application/json"
    assert response.body


def test_a_changed_object_is_encoded_again(server: ApiServer) -> None:
    node = get(server, f"{NODES}/node-a", "application/json").body
    assert get(server, f"{NODES}/node-a", BOTH).raw == encoded(node)
    node["metadata"]["labels"] = {"topology.kubernetes.io/zone": "zone-7"}
    server.load([node])
    assert b"zone-7" in get(server, f"{NODES}/node-a", BOTH).raw


def test_disorder_keeps_events_whole() -> None:
    sent = [encoded_event(event) for event in recorded("streaming list of services").events()]

    async def chunks() -> AsyncIterator[bytes]:
        yield b"".join(sent[:-1])
        yield sent[-1]

    async def received() -> bytes:
        faults = Faults()
        faults.set(Disorder())
        return b"".join([chunk async for chunk in faults.stream(chunks())])

    found = protobuf.events(asyncio.run(received()))
    assert set(found) == set(sent)
    assert found != sent
    assert found[-1] == sent[-1]
