"""Events from a folder of manifests."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pyproxy.errors import UsageError
from pyproxy.model.events import InvalidObject, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service
from pyproxy.source import manifests
from pyproxy.source.manifests import ManifestSource
from tests.waiting import until

from .scripted import Pace, Recorder


def service(name: str, port: object = 80, **metadata: object) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, **metadata},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]},
    }


def write(path: Path, *documents: object) -> None:
    """Replace a file by a rename, as deployment tools do."""
    path.parent.mkdir(exist_ok=True)
    text = yaml.safe_dump_all(documents) if path.suffix != ".json" else json.dumps(documents[0])
    (path.parent / ".new").write_text(text)
    (path.parent / ".new").rename(path)


Follow = Callable[[], Recorder]


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Follow]:
    sources: list[ManifestSource] = []

    def begin() -> Recorder:
        recorder = Recorder()
        sources.append(ManifestSource(tmp_path, "node-a", recorder))
        sources[-1].start()
        until(lambda: sum(isinstance(event, Synced) for event in recorder.events) == 3)
        return recorder

    yield begin
    for source in sources:
        source.stop()
        source.stop()


def problems(recorder: Recorder) -> list[str]:
    return [str(event.problem) for event in recorder.events if isinstance(event, InvalidObject)]


def test_documents_lists_and_json(tmp_path: Path, follow: Follow) -> None:
    a_slice = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "a-1", "labels": {"kubernetes.io/service-name": "a"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    }
    nodes = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        for name in ("node-a", "node-b")
    ]
    write(tmp_path / "a.yaml", service("a"), None, a_slice, {"apiVersion": "v1", "kind": "Pod"})
    items = [service("b", namespace="shop"), *nodes]
    write(tmp_path / "list.yml", {"apiVersion": "v1", "kind": "List", "items": items})
    bare = {key: value for key, value in service("c").items() if key in {"metadata", "spec"}}
    write(tmp_path / "c.json", {"apiVersion": "v1", "kind": "ServiceList", "items": [bare]})
    write(tmp_path / "sub" / "d.yaml", service("d"))
    write(tmp_path / ".hidden.yaml", service("hidden"))
    write(tmp_path / "notes.txt", "no manifest")
    recorder = follow()
    assert problems(recorder) == []
    objects = [event.obj for event in recorder.events if isinstance(event, Upsert)]
    names = {obj.name for obj in objects if isinstance(obj, Service)}
    assert names == {ObjectName("default", n) for n in "acd"} | {ObjectName("shop", "b")}
    assert [obj.name for obj in objects if isinstance(obj, Node)] == ["node-a"]
    assert [obj.service for obj in objects if isinstance(obj, EndpointSlice)] == [
        ObjectName("default", "a")
    ]
    assert recorder.events[-3:] == [
        Synced(Kind.SERVICE, frozenset(names)),
        Synced(Kind.ENDPOINT_SLICE, frozenset({ObjectName("default", "a-1")})),
        Synced(Kind.NODE, frozenset({ObjectName("", "node-a")})),
    ]


def test_an_empty_folder_is_synced(follow: Follow) -> None:
    assert follow().services() == ["="]


def test_only_changes_are_emitted(tmp_path: Path, follow: Follow) -> None:
    write(tmp_path / "1.yaml", service("a"), service("b"))
    write(tmp_path / "2.yaml", service("c"))
    recorder = follow()
    assert sorted(recorder.services()) == ["+a", "+b", "+c", "=a,b,c"]
    write(tmp_path / "1.yaml", service("a"), service("b", port=81))
    recorder.until(lambda seen: seen[4:] == ["+b"])
    write(tmp_path / "1.yaml", service("a"))
    recorder.until(lambda seen: seen[5:] == ["-b"])
    (tmp_path / "2.yaml").unlink()
    recorder.until(lambda seen: seen[6:] == ["-c"])
    write(tmp_path / "new" / "3.yaml", service("d"))
    recorder.until(lambda seen: seen[7:] == ["+d"])
    (tmp_path / "new").rename(tmp_path.parent / "elsewhere")
    recorder.until(lambda seen: seen[8:] == ["-d"])
    headless = service("a") | {"spec": {"clusterIP": "None"}}
    write(tmp_path / "1.yaml", headless)
    recorder.until(lambda seen: seen[9:] == ["-a"])


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.yaml", "kind: Service\nmetadata:\n  - x\n a: b\n", "line 4"),
        ("a.yaml", "just text\n", "document 1 is not an object"),
        ("a.yaml", "kind: List\nitems: 3\n", "items is not a list"),
        ("a.yaml", "a: &a [*a]\nkind: Service\napiVersion: v1\n", "does not parse"),
        ("a.json", '{"kind":\n\n "Service",,}', "line 3"),
        ("a.json", "\udcff", "line 1: Expecting value"),
    ],
)
def test_a_file_that_does_not_parse_keeps_its_last_objects(
    tmp_path: Path, follow: Follow, name: str, text: str, line: str
) -> None:
    path = tmp_path / name
    write(path, service("a"))
    recorder = follow()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    until(lambda: problems(recorder) != [])
    (problem,) = problems(recorder)
    assert str(path) in problem
    assert line in problem
    write(path, service("a"), service("b"))
    if path.suffix == ".yaml":
        recorder.until(lambda seen: seen[2:] == ["+b"])
    assert recorder.services()[:2] == ["+a", "=a"]


def test_a_bad_object_in_a_good_file(tmp_path: Path, follow: Follow) -> None:
    write(tmp_path / "1.yaml", service("a"), service("b"), service(""))
    recorder = follow()
    assert "metadata.name" in problems(recorder)[0]
    write(tmp_path / "1.yaml", service("a", port="eighty"), service("b"))
    seen = recorder.until(lambda seen: "-a" in seen)
    assert sorted(seen) == sorted(["+a", "+b", "=a,b", "!default/a", "-a"])


def test_the_first_file_wins_an_object_that_two_define(tmp_path: Path, follow: Follow) -> None:
    write(tmp_path / "1.yaml", service("a", port=1), service("a", port=2))
    write(tmp_path / "2.yaml", service("a", port=3))
    recorder = follow()
    assert len(problems(recorder)) == 2
    assert all("Service default/a" in problem for problem in problems(recorder))

    def ports() -> list[int]:
        return [
            event.obj.ports[0].port
            for event in recorder.events
            if isinstance(event, Upsert) and isinstance(event.obj, Service)
        ]

    assert ports() == [1]
    (tmp_path / "1.yaml").unlink()
    until(lambda: ports() == [1, 3])


def test_a_mounted_config_map_replaces_all_files_by_one_symlink(
    tmp_path: Path, follow: Follow
) -> None:
    for version, port in (("1", 80), ("2", 81)):
        write(tmp_path / f"..{version}" / "a.yaml", service("a", port=port))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    recorder = follow()
    assert recorder.services() == ["+a", "=a"]
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    recorder.until(lambda seen: seen[2:] == ["+a"])


@pytest.mark.xfail(strict=False, reason="fails on a busy machine; cause unknown")
def test_a_folder_that_is_deleted_and_made_again_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, recorder = tmp_path / "manifests", Recorder()
    write(folder / "a.yaml", service("a"))
    source = ManifestSource(folder, "node-a", recorder, clock=Pace())
    source.start()
    try:
        recorder.until(lambda seen: seen == ["+a", "=a"])
        shutil.rmtree(folder)
        recorder.until(lambda seen: seen[2:] == ["-a"])
        write(folder / "b.yaml", service("b"))
        recorder.until(lambda seen: seen[3:] == ["+b"])
        write(folder / "c.yaml", service("c"))
        recorder.until(lambda seen: seen[4:] == ["+c"])
    finally:
        source.stop()
    assert not any(each.exc_info for each in caplog.records)
    assert len([each for each in caplog.messages if "cannot watch" in each]) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "OS file watch limit reached"),
        # watchfiles raises this if inotify_init fails.
        RuntimeError("Error creating recommended watcher: Too many open files (os error 24)"),
    ],
    ids=["watches", "instances"],
)
def test_a_folder_is_read_now_and_then_if_it_cannot_be_watched(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object, **__: object) -> Iterator[set[object]]:
        raise error

    monkeypatch.setattr(manifests, "watch", refuse)
    write(tmp_path / "a.yaml", service("a"))
    recorder = Recorder()
    source = ManifestSource(tmp_path, "node-a", recorder, clock=Pace())
    source.start()
    try:
        recorder.until(lambda seen: seen == ["+a", "=a"])
        write(tmp_path / "b.yaml", service("b"))
        recorder.until(lambda seen: seen[2:] == ["+b"])
    finally:
        source.stop()
    (line,) = [each for each in caplog.messages if "cannot watch" in each]
    assert line.endswith(f"reading it every 5 s: {error}")


def test_a_path_that_is_not_a_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--manifests .*/nowhere: does not exist"):
        ManifestSource(tmp_path / "nowhere", "node-a", Recorder())
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        ManifestSource(tmp_path / "file", "node-a", Recorder())


def test_stop_is_prompt(tmp_path: Path) -> None:
    recorder = Recorder()
    source = ManifestSource(tmp_path, "node-a", recorder)
    source.stop()
    source = ManifestSource(tmp_path, "node-a", recorder)
    source.start()
    recorder.until(lambda seen: seen == ["="])
    source.stop()
    assert not any(thread.name == "source-manifests" for thread in threading.enumerate())
