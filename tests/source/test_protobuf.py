"""Objects in protobuf equal the same objects in JSON, and a malformed one costs only itself."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproxy_lab.apiserver import protobuf
from pyproxy_lab.apiserver.protobuf_fields import SENT, Form, Part

from pyproxy.errors import Problem
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source import protobuf_objects, protobuf_schema, protobuf_stream, stream
from pyproxy.source.decode import decode_object, identify
from pyproxy.source.large_objects import LARGE, LargeObjects
from pyproxy.source.object_events import ObjectEvents, Resource
from pyproxy.source.retry import SystemClock
from pyproxy.source.stream import MalformedResponseError
from pyproxy.source.wire import ProtobufObject
from tests.examples import examples
from tests.lab.recorded import TWINS, Recorded, recorded
from tests.waiting import PATIENCE

KIND_OF_PATH = {
    "/services": Kind.SERVICE,
    "/endpointslices": Kind.ENDPOINT_SLICE,
    "/nodes": Kind.NODE,
}
API_VERSIONS = {Kind.ENDPOINT_SLICE: "discovery.k8s.io/v1"}


def kind_of(answer: Recorded) -> Kind:
    return next(kind for path, kind in KIND_OF_PATH.items() if path in answer.path)


@pytest.mark.parametrize(
    "answer", [each for each in TWINS if each.status == 200], ids=lambda answer: answer.name
)
def test_recorded_objects_are_those_in_json(answer: Recorded) -> None:
    kind = kind_of(answer)
    if answer.is_watch:
        events = [protobuf_stream.event(each) for each in protobuf_stream.frames([answer.body])]
        twins = [stream.event(each) for each in stream.lines([answer.twin + b"\n"])]
        pairs = list(zip(events, twins, strict=False))
        assert len(pairs) == len(twins)
        for event, twin in pairs:
            assert event.type == twin.type
            if event.type == "BOOKMARK":
                meta = protobuf_stream.bookmark(event.object)
                assert meta.annotations == stream.bookmark(twin.object).annotations
            else:
                assert decode_object(kind, event.object) == decode_object(kind, twin.object)
                assert identify(kind, event.object) == identify(kind, twin.object)
        return
    page = protobuf_stream.object_list(answer.body, f"{kind.value}List")
    twin_page = stream.object_list(answer.twin, f"{kind.value}List")
    assert page.metadata.resource_version == twin_page.metadata.resource_version
    assert (page.metadata.continue_ or None) == twin_page.metadata.continue_
    assert twin_page.items
    for item, twin_item in zip(page.items, twin_page.items, strict=True):
        assert decode_object(kind, item) == decode_object(kind, twin_item)
        assert identify(kind, item) == identify(kind, twin_item)


TEXTS = st.one_of(
    st.sampled_from(
        ["", "a", "shop", "web", "10.0.0.9", "fd00::9", "10.0.0.0/8", "None", "Local", "Cluster"]
    ),
    st.sampled_from(["TCP", "SCTP", "ClientIP", "LoadBalancer", "NodePort", "IPv4", "IPv6", "VIP"]),
    st.sampled_from(["InternalIP", "ExternalIP", "ExternalName", "FQDN"]),
    st.text(max_size=9),
)
KEYS = st.sampled_from(
    [
        *("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"),
        *("kubernetes.io/service-name", "topology.kubernetes.io/zone", "app"),
        "endpoints.kubernetes.io/last-change-trigger-time",
        "pyproxy.io/ipvs-scheduler",
    ]
)
TIMES = st.datetimes(datetime(1971, 1, 1), timezones=st.just(UTC)).map(
    lambda moment: f"{moment:%Y-%m-%dT%H:%M:%SZ}"
)
BY_FORM: dict[Form, st.SearchStrategy[Any]] = {
    Form.TEXT: TEXTS,
    Form.NUMBER: st.sampled_from([0, 1, 80, 600, 30080, 65535, 65536, -1, 2**31 - 1, -(2**31)]),
    Form.FLAG: st.booleans(),
    Form.TEXTS: st.lists(TEXTS, max_size=3),
    Form.MAP: st.dictionaries(KEYS, TEXTS, max_size=3),
    Form.INT_OR_STRING: st.one_of(st.just("http"), st.integers(0, 65535)),
    Form.TIME: TIMES,
}
# Go's JSON leaves out other fields that are zero, unless they are pointers.
ALWAYS_SHOWN = {"port", "addressType"}
NOT_MADE = {"ownerReferences", "managedFields"}


@st.composite
def messages(draw: st.DrawFn, part: Part) -> dict[str, Any]:
    """Make an object as the JSON of an API server shows it."""
    made: dict[str, Any] = {}
    for name, form in part.fields.values():
        field = name.removesuffix("?")
        if field in NOT_MADE or (name != field and draw(st.booleans())):
            continue
        if isinstance(form, Part):
            inner = messages(form)
            value = draw(st.lists(inner, max_size=2) if form.repeated else inner)
        else:
            value = draw(BY_FORM[form])
        if value or name != field or field in ALWAYS_SHOWN:
            made[field] = value
    return made


NAMED = st.fixed_dictionaries({"name": TEXTS, "namespace": TEXTS})


@pytest.mark.parametrize("kind", Kind)
@given(data=st.data())
@settings(max_examples=examples(60))
def test_any_object_is_the_one_in_json(kind: Kind, data: st.DataObject) -> None:
    obj = data.draw(messages(SENT[kind.value]))
    if data.draw(st.booleans()):
        obj.setdefault("metadata", {}).update({"name": "web", "namespace": "shop"})
    api_version = API_VERSIONS.get(kind, "v1")
    obj.setdefault("metadata", {})
    text = json.dumps({"kind": kind.value, "apiVersion": api_version, **obj}).encode()
    raw = protobuf.encode(kind.value, obj)
    expected = decode_object(kind, text)
    assert decode_object(kind, ProtobufObject(raw)) == expected
    with_kind = ProtobufObject(protobuf.envelope(api_version, kind.value, raw))
    assert decode_object(kind, with_kind) == expected
    assert identify(kind, with_kind) == identify(kind, text)


def service(name: str = "web", **spec: Any) -> bytes:
    meta = {"name": name, "namespace": "shop", "resourceVersion": "7"}
    ports = [{"port": 80, "protocol": "TCP"}]
    return protobuf.encode(
        "Service", {"metadata": meta, "spec": {"clusterIP": "10.96.0.1", "ports": ports} | spec}
    )


def field(number: int, value: bytes) -> bytes:
    assert number < 16
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


META = field(1, field(1, b"odd") + field(3, b"shop") + field(6, b"8"))
DEEP = b"\x0b" * 5_000  # starts of groups
MALFORMED = {
    "a name that is no text": (
        field(1, field(1, b"o\xff") + field(3, b"shop")),
        None,
        "String field had bad UTF-8",
    ),
    "another text that is none": (
        META + field(2, field(3, b"\xff")),
        "odd",
        "String field had bad UTF-8",
    ),
    "half of a surrogate pair": (
        META + field(2, field(3, b"\xed\xa0\x80")),
        "odd",
        "String field had bad UTF-8",
    ),
    "a part that is cut off": (META + field(2, b"\x0a\x7fx"), "odd", ""),
    "the end is cut off": (META + b"\x12\x7f", "odd", ""),
    "cut off within the metadata": (META[:-3], None, ""),
    "a number without end": (META + b"\x80" * 5_000, "odd", ""),
    "a length without end": (META + b"\x12" + b"\xff" * 11, "odd", ""),
    "deep groups": (META + DEEP, "odd", ""),
    "no message": (b"\xff" * 20, None, ""),
    "a time out of range": (
        field(1, field(1, b"odd") + field(3, b"shop") + field(8, b"\x08" + b"\xff" * 8 + b"\x7f")),
        "odd",
        "seconds are no time",
    ),
}


@pytest.mark.parametrize(("raw", "name", "text"), MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("has_kind", [True, False])
def test_a_malformed_object_is_a_problem(
    raw: bytes, name: str | None, text: str, has_kind: bool
) -> None:
    obj = ProtobufObject(protobuf.envelope("v1", "Service", raw) if has_kind else raw)
    found = decode_object(Kind.SERVICE, obj)
    assert found.name == (ObjectName("shop", name) if name else None)
    assert isinstance(found.value, Problem)
    assert found.value.field == "(whole object)"
    assert found.value.message.startswith("not decodable: ")
    assert text in found.value.message
    assert found.value.message.endswith("; the whole object is ignored")
    assert "pyproxy" not in found.value.message


def test_an_object_of_another_kind_has_no_name() -> None:
    raw = protobuf.envelope("v1", "Node", service())
    found = decode_object(Kind.SERVICE, ProtobufObject(raw))
    in_json = decode_object(
        Kind.SERVICE, b'{"kind":"Node","metadata":{"name":"web","resourceVersion":"7"}}'
    )
    assert found.name is in_json.name is None
    assert isinstance(found.value, Problem)
    assert isinstance(in_json.value, Problem)
    assert found.value.message == in_json.value.message
    assert identify(Kind.SERVICE, ProtobufObject(raw)) is None


def test_a_malformed_object_does_not_affect_a_list() -> None:
    odd = MALFORMED["another text that is none"][0]
    pieces = protobuf.listing(
        "v1", "ServiceList", {"resourceVersion": "9"}, [service("a"), odd, service("b")]
    )
    emitted: list[Event] = []
    resource = Resource(Kind.SERVICE, "", "ServiceList", {})
    objects = ObjectEvents(
        resource, emitted.append, lambda version: None, SystemClock(), threading.Event()
    )
    names: set[ObjectName] = set()
    for item in protobuf_stream.object_list(b"".join(pieces), "ServiceList").items:
        objects.upsert(item, 0.0, names)
    objects.complete(names)
    first, deleted, invalid, second, synced = emitted
    assert isinstance(first, Upsert)
    assert isinstance(second, Upsert)
    assert isinstance(deleted, Delete)
    assert (deleted.kind, deleted.name) == (Kind.SERVICE, ObjectName("shop", "odd"))
    assert isinstance(invalid, InvalidObject)
    assert isinstance(synced, Synced)
    assert {each.name for each in synced.names} == {"a", "b"}
    assert synced.invalid == {"shop/odd"}


@given(st.binary(max_size=80), st.sampled_from(list(Kind)))
def test_any_bytes_are_an_object_or_a_problem(data: bytes, kind: Kind) -> None:
    for raw in (data, META + data, protobuf.envelope("v1", kind.value, META + data)):
        found = decode_object(kind, ProtobufObject(raw))
        if isinstance(found.value, Problem):
            assert "\n" not in found.value.message
        identify(kind, ProtobufObject(raw))


def test_spoilt_recordings_are_objects_or_problems() -> None:
    random = Random(18)
    for answer in TWINS:
        if answer.status != 200 or answer.is_watch:
            continue
        kind = kind_of(answer)
        for item in protobuf_stream.object_list(answer.body, f"{kind.value}List").items:
            for _ in range(60):
                spoilt = bytearray(item.data)
                spoilt[random.randrange(len(spoilt))] = random.randrange(256)
                decode_object(kind, ProtobufObject(bytes(spoilt)))


def parsed(frame: bytes) -> tuple[str, bytes] | None:
    """Parse an event as a whole; None if it is malformed."""
    try:
        found = protobuf_objects.parse(protobuf_schema.message("WatchEvent"), frame)
    except msgspec.DecodeError:
        return None
    raw = found.object.raw
    return (found.type, raw) if raw.startswith(protobuf_objects.MAGIC) else None


def read(frame: bytes) -> tuple[str, bytes] | None:
    try:
        found = protobuf_stream.event(frame)
    except MalformedResponseError:
        return None
    return found.type, found.object.data


@given(st.data())
@settings(max_examples=examples(200))
def test_any_event_is_that_of_the_parser(data: st.DataObject) -> None:
    event_type = data.draw(st.sampled_from(["ADDED", "DELETED", "BOOKMARK", ""]))
    kind = data.draw(st.sampled_from([*Kind]))
    api_version = data.draw(st.sampled_from([API_VERSIONS.get(kind, "v1"), "v2"]))
    # Sizes of one, two and three bytes, with a few bytes that are other ones.
    raw = META + b"\x7a\x80\x80\0" * data.draw(st.sampled_from([0, 9, 30, 31, 32, 5_000]))
    enveloped = protobuf.envelope(api_version, kind.value, raw)
    frame = bytearray(protobuf.event(event_type, enveloped)[4:])
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.one_of(st.integers(0, 60), st.integers(-9, -1))) % len(frame)
        frame[at] = data.draw(st.one_of(st.integers(0, 255), st.just(frame[at] ^ 128)))
    spoilt = bytes(frame[: data.draw(st.sampled_from([None, -1, -4]))])
    assert read(spoilt) == parsed(spoilt)
    found = read(spoilt)
    if found is not None:
        try:
            unknown = protobuf_objects.parse(protobuf_schema.message("Unknown"), found[1][4:])
        except msgspec.DecodeError:
            assert isinstance(decode_object(kind, ProtobufObject(found[1])).value, Problem)
        else:
            bare = decode_object(kind, ProtobufObject(unknown.raw))
            with_kind = decode_object(kind, ProtobufObject(found[1]))
            if unknown.type_meta.kind in {kind.value, ""}:
                assert with_kind == bare


def a_slice(endpoints: list[dict[str, Any]]) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": "web"}
    return {
        "metadata": {"name": "web-1", "namespace": "shop", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": 80}],
        "endpoints": endpoints,
    }


@pytest.mark.parametrize(
    "endpoints",
    [
        pytest.param(
            [
                {
                    "addresses": [f"10.0.{each // 250}.{1 + each % 250}"],
                    "conditions": {"ready": each % 2 == 0},
                    "nodeName": "n" * 200,
                    "hints": {"forZones": [{"name": "z" * 300}]},
                }
                for each in range(1000)
            ],
            id="many",
        ),
        pytest.param(
            [{"addresses": ["10.0.0.9"], "hints": {"forZones": [{"name": "z" * 300_000}]}}],
            id="large hints",
        ),
    ],
)
def test_a_large_slice_is_the_one_in_json(endpoints: list[dict[str, Any]]) -> None:
    obj = a_slice(endpoints)
    raw = protobuf.encode("EndpointSlice", obj)
    assert len(raw) > 256 << 10
    found = decode_object(Kind.ENDPOINT_SLICE, ProtobufObject(raw))
    assert found == decode_object(Kind.ENDPOINT_SLICE, json.dumps(obj).encode())


def test_a_malformed_endpoint_of_a_large_slice_is_the_problem_of_the_slice() -> None:
    raw = protobuf.encode("EndpointSlice", a_slice([{"zone": "z" * 300_000}])) + field(
        2, b"\x0a\xff"
    )
    found = decode_object(Kind.ENDPOINT_SLICE, ProtobufObject(raw))
    assert found.name == ObjectName("shop", "web-1")
    assert isinstance(found.value, Problem)
    assert found.value.field == "(whole object)"


MEASURE = """
import sys
from pathlib import Path
from pyproxy.model.objects import Kind
from pyproxy.source.decode import decode_object
from pyproxy.source.wire import ProtobufObject

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10

head, part = map(bytes.fromhex, sys.argv[1:])
decode_object(Kind.ENDPOINT_SLICE, ProtobufObject(head))
size = 2 << 20
data = ProtobufObject(head + part * (size // len(part)))
before = peak()
decode_object(Kind.ENDPOINT_SLICE, data)
print((peak() - before) / size)
"""


@pytest.mark.parametrize("part", [field(2, b""), field(3, b"")], ids=["endpoints", "ports"])
def test_the_memory_for_empty_parts_is_bounded(part: bytes) -> None:
    """The parser's own objects would take 115 times the bytes of empty endpoints."""
    head = protobuf.encode("EndpointSlice", a_slice([]))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, head.hex(), part.hex()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 40


class Still:
    """A clock that stands still."""

    def now(self) -> float:
        return 0.0

    def wait(self, stopping: threading.Event, seconds: float) -> None:
        stopping.wait(0.001)


def test_the_budget_of_large_objects_counts_bytes_of_protobuf() -> None:
    stopping = threading.Event()
    emitted: list[Event] = []
    objects = ObjectEvents(
        Resource(Kind.SERVICE, "", "ServiceList", {}),
        emitted.append,
        lambda version: None,
        Still(),
        stopping,
    )
    padding = {"padding": "x" * (4 * LARGE)}
    meta = {"name": "odd", "namespace": "shop", "annotations": padding}
    raw = protobuf.encode("Service", {"metadata": meta, "spec": {"clusterIP": "10.96.0.1"}})
    try:
        for _ in range(5):
            objects.upsert(ProtobufObject(raw), 0.0, None)
    finally:
        stopping.set()
    # Two of half a megabyte are the budget of one.
    assert 2 <= len(emitted) < 5


def test_a_version_that_waits_is_decoded_later() -> None:
    stopping, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def emit(decoded: Any, read_at: float) -> None:
        found.append((decoded, read_at))
        done.set()

    large = LargeObjects(Kind.SERVICE, SystemClock(), stopping, emit)
    name, obj = ObjectName("shop", "web"), ProtobufObject(service())
    try:
        with large._lock:
            large._budgets.bucket(name).take(SystemClock().now(), 1024)
        assert large.hold(name, obj, 3.0)
        assert done.wait(PATIENCE)
    finally:
        stopping.set()
    assert found == [(decode_object(Kind.SERVICE, obj), 3.0)]


def test_recordings_have_an_object_of_each_kind() -> None:
    for name, kind in (("list services", Kind.SERVICE), ("list slices", Kind.ENDPOINT_SLICE)):
        page = protobuf_stream.object_list(recorded(name).body, f"{kind.value}List")
        assert not isinstance(decode_object(kind, page.items[-1]).value, Problem)
