"""Decoding responses of the API and files of manifests raises only errors of pyproxy."""

from __future__ import annotations

import json
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
from tests.fuzz.objects import JSON, corrupted_json, objects

many = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
few = settings(many, max_examples=60)
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
    source._refresh({path})
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
    ManifestSource(tmp_path, "node-a", emitted.append)._refresh({path})
    assert len(emitted) == 1
