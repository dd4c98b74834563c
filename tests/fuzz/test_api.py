"""Decoding responses of the API and files of manifests raises only errors of pyproxy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.errors import Problem, PyproxyError, SourceError, UsageError
from pyproxy.model.events import Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Node, Service
from pyproxy.policy.endpoints import route_service
from pyproxy.source import stream
from pyproxy.source.connect import connect
from pyproxy.source.decode import NotProxied, decode_object
from pyproxy.source.manifests import ManifestSource
from tests.examples import examples
from tests.fuzz.objects import JSON, corrupted_json, objects

many = settings(
    max_examples=examples(120),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
few = settings(many, max_examples=examples(60))
MODELS = {Kind.SERVICE: Service, Kind.ENDPOINT_SLICE: EndpointSlice, Kind.NODE: Node}


@many
@given(
    kind=st.sampled_from(Kind), data=st.one_of(objects.map(json.dumps), st.text(), corrupted_json)
)
def test_objects(kind: Kind, data: str) -> None:
    reading = decode_object(kind, data.encode(errors="replace"))
    if isinstance(reading.value, Problem | NotProxied):
        return
    assert isinstance(reading.value, MODELS[kind])
    assert reading.name is not None
    assert reading.name.name
    world = ClusterState()
    world.handle_event(Upsert(reading.value))
    for service in world.services.values():
        route_service(service, world.slices_of(service.name), world.node, "node-a")


@many
@given(kind=st.sampled_from(Kind), data=st.binary(max_size=200))
def test_malformed_objects(kind: Kind, data: bytes) -> None:
    assert decode_object(kind, data).version is not None


LINES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda kind, obj: json.dumps({"type": kind, "object": obj}).encode(),
            st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "", None, 7]),
            st.one_of(objects, JSON),
        ),
    ),
    max_size=5,
)


@many
@given(lines=LINES, cuts=st.lists(st.integers(0, 500), max_size=6), end=st.booleans())
def test_watch_streams(lines: list[bytes], cuts: list[int], end: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if end else b"")
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[a:b] for a, b in pairwise(edges)]
    try:
        for line in stream.lines(chunks):
            try:
                event = stream.event(line)
                if event.type == "BOOKMARK":
                    stream.bookmark(event.object)
                else:
                    decode_object(Kind.SERVICE, event.object)
            except SourceError as error:
                assert "\n" not in str(error)  # noqa: PT017
    except SourceError:
        pass


@many
@given(st.one_of(st.binary(max_size=80), objects.map(json.dumps).map(str.encode), corrupted_json))
def test_lists(data: bytes | str) -> None:
    body = data.encode(errors="replace") if isinstance(data, str) else data
    try:
        found = stream.object_list(body, "ServiceList")
    except SourceError:
        return
    for item in found.items or ():
        decode_object(Kind.SERVICE, item)


GOOD_SERVICE = b'{"metadata":{"name":"good","namespace":"shop"},"spec":{"clusterIP":"10.96.0.1"}}'
ODD_VALUES = [
    rb'"\ud800"', rb'"\udfff\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"\0"', b"NaN", b"-Infinity",
    b"1e400", b"9" * 5000, b"[" * 3000 + b"]" * 3000, b'{"":' * 3000 + b"7" + b"}" * 3000, b"",
    b"+1", rb'"]}\"[{,"', b"nul", b'"\\x"',
]  # fmt: skip


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of each scalar in a value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            yield from _leaves(inner)
        else:
            yield value, key


@many
@given(
    kind=st.sampled_from(Kind), obj=objects, value=st.sampled_from(ODD_VALUES), at=st.integers(0)
)
def test_an_odd_item_does_not_affect_the_others(
    kind: Kind, obj: dict[str, Any], value: bytes, at: int
) -> None:
    whole = json.loads(json.dumps(obj | {"odd": 1}))
    leaves = list(_leaves(whole))
    container, key = leaves[at % len(leaves)]
    container[key] = "HERE"
    odd = json.dumps(whole).encode().replace(b'"HERE"', value)
    page = b'{"kind":"XList","metadata":{"resourceVersion":"5"},"items":[%b,%b,%b]}'
    items = stream.object_list(page % (GOOD_SERVICE, odd, GOOD_SERVICE), "XList").items
    assert items is not None
    assert len(items) == 3
    assert [bytes(memoryview(items[n])) for n in (0, 2)] == [GOOD_SERVICE] * 2
    decode_object(kind, items[1])
    event = stream.event(memoryview(b'{"object":%b,"type":"ADDED"}' % odd))
    assert decode_object(kind, event.object) == decode_object(kind, items[1])


YAML = st.one_of(
    st.binary(max_size=120),
    st.text(max_size=120).map(lambda text: text.encode(errors="replace")),
    objects.map(lambda obj: yaml.safe_dump(obj).encode()),
    st.lists(objects, max_size=3).map(
        lambda items: yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}).encode()
    ),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [
            b"&a [*a]",
            b"? [x]\n: y",
            b"!!python/object:os.system x",
            b"a: 1e999999\nb: .nan\nc: .inf",
            b"kind: Service\napiVersion: v1\nmetadata: {name: 2026-01-01, uid: !!binary aGk=}",
            b"kind: Service\napiVersion: v1\nmetadata: {name: 0x7fffffffffffffffffffff}",
            b"\xff\xfe\0\0",
            b"--- \n--- \n...\n---",
        ]
    ),
)


@many
@given(data=YAML, suffix=st.sampled_from([".yaml", ".json"]))
def test_manifests(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"some{suffix}"
    path.write_bytes(data)
    emitted: list[object] = []
    source = ManifestSource(tmp_path, "node-a", emitted.append)
    source._read({path}, ())
    path.unlink()


@few
@given(data=st.one_of(YAML, JSON.map(lambda v: yaml.safe_dump({"clusters": v}).encode())))
def test_kubeconfigs(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        connect(str(path), "")
    assert str(path) in str(caught.value)


GOOD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "c",
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
}


@few
@given(
    where=st.sampled_from(
        [
            ("users", 0, "user"), ("users", 0, "user", "token"), ("users",),
            ("clusters", 0, "cluster", "server"), ("contexts", 0, "context", "user"),
            ("clusters", 0, "cluster", "certificate-authority-data"),
            ("users", 0, "user", "client-certificate-data"), ("users", 0, "user", "exec"),
            ("users", 0, "user", "auth-provider"), ("users", 0, "user", "tokenFile"),
            ("current-context",), ("users", 0, "name"), ("clusters", 0, "cluster", "proxy-url"),
            ("clusters", 0, "cluster", "insecure-skip-tls-verify"),
        ]
    ),
    value=JSON,
)  # fmt: skip
def test_kubeconfigs_with_one_mistake(tmp_path: Path, where: tuple[Any, ...], value: Any) -> None:
    config = json.loads(json.dumps(GOOD))
    inner = config
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = value
    path = tmp_path / "kubeconfig"
    path.write_bytes(yaml.safe_dump(config).encode())
    try:
        connect(str(path), "")
    except PyproxyError as error:
        assert isinstance(error, UsageError)  # noqa: PT017


@pytest.mark.parametrize("data", [b"{v1: " * 2000, b"- " * 3000, b"[" * 5000])
def test_deeply_nested_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "deep.yaml"
    path.write_bytes(data)
    with pytest.raises(UsageError):
        connect(str(path), "")
    emitted: list[object] = []
    ManifestSource(tmp_path, "node-a", emitted.append)._read({path}, ())
    assert len(emitted) == 1
