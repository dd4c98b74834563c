"""Events from a folder of manifests."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from pyproxy.errors import UsageError
from pyproxy.model.events import Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service
from pyproxy.source import manifest_folder, manifests
from pyproxy.source.manifests import ManifestSource
from tests.waiting import PATIENCE, until

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


class Hands(Pace):
    """A clock whose time the test moves by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def now(self) -> float:
        return self.time


@contextmanager
def following(
    folder: Path, clock: Pace | None = None, emit: Callable[[Recorder, Event], None] | None = None
) -> Iterator[Recorder]:
    recorder = Recorder()

    def record(event: Event) -> None:
        recorder(event)
        if emit is not None:
            emit(recorder, event)

    source = ManifestSource(folder, "node-a", record, clock=clock or Pace())
    source.start()
    try:
        yield recorder
    finally:
        source.stop()


def test_items_of_a_config_map_in_a_folder_are_read(tmp_path: Path) -> None:
    for version, name in (("1", "a"), ("2", "b")):
        (tmp_path / f"..{version}").mkdir()
        write(tmp_path / f"..{version}" / "sub" / "x.yaml", service(name))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "sub").symlink_to("..data/sub")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "root").symlink_to("/")
    with following(tmp_path) as recorder:
        recorder.until(lambda seen: seen == ["+a", "=a"])
        (tmp_path / "..new").symlink_to("..2")
        (tmp_path / "..new").rename(tmp_path / "..data")
        recorder.until(lambda seen: sorted(seen[2:]) == ["+b", "-a"])
        assert problems(recorder) == []


def test_a_folder_that_gets_the_inode_of_the_deleted_one_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    write(folder / "a.yaml", service("a"))

    def replace(recorder: Recorder, _: Event) -> None:
        # In the thread of the source, so that it cannot look before the new folder exists.
        if recorder.services()[2:] == ["-a"] and not (folder / "b.yaml").exists():
            folder.rmdir()
            write(folder / "b.yaml", service("b"))

    with following(folder, emit=replace) as recorder:
        recorder.until(lambda seen: seen == ["+a", "=a"])
        (folder / "a.yaml").unlink()
        recorder.until(lambda seen: seen[3:] == ["+b"])
        write(folder / "c.yaml", service("c"))
        recorder.until(lambda seen: seen[4:] == ["+c"])


def delete_and_make_again(folder: Path, new: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(new, folder)


def rename_away_and_into_place(folder: Path, new: Path) -> None:
    folder.rename(folder.with_name("old"))
    new.rename(folder)


def exchange_and_delete(folder: Path, new: Path) -> None:
    """Rename, and free the old folder's inode for the one that is made again."""
    rename_away_and_into_place(folder, new)
    shutil.rmtree(folder.with_name("old"))
    delete_and_make_again(folder, shutil.copytree(folder, new))


@pytest.mark.parametrize(
    "replace", [delete_and_make_again, rename_away_and_into_place, exchange_and_delete]
)
def test_a_folder_that_is_replaced_is_followed(
    tmp_path: Path, replace: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder, new = tmp_path / "manifests", tmp_path / "new"
    write(folder / "a.yaml", service("a"))
    write(folder / "same.yaml", service("same"))
    shutil.copytree(folder, new)
    (new / "a.yaml").rename(new / "b.yaml")
    write(new / "b.yaml", service("b"))
    with following(folder) as recorder:
        recorder.until(lambda seen: "=a,same" in seen)
        replace(folder, new)
        recorder.until(lambda seen: "+b" in seen and "-a" in seen)
        write(folder / "c.yaml", service("c"))
        recorder.until(lambda seen: "+c" in seen)
        last = {text[1:]: text[0] for text in recorder.services() if text[0] in "+-"}
        assert last == {"a": "-", "same": "+", "b": "+", "c": "+"}
    assert not any(each.exc_info for each in caplog.records)


def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "x.yaml", service(name))
    folder = tmp_path / "manifests"
    folder.symlink_to("a")
    with following(folder) as recorder:
        recorder.until(lambda seen: seen == ["+a", "=a"])
        (tmp_path / "link").symlink_to("b")
        (tmp_path / "link").rename(folder)
        recorder.until(lambda seen: sorted(seen[2:]) == ["+b", "-a"])
        write(folder / "x.yaml", service("c"))
        recorder.until(lambda seen: sorted(seen[4:]) == ["+c", "-b"])


def looks(clock: Hands) -> None:
    """Wait until the source has looked for its folder again."""
    before = len(clock.waits)
    until(lambda: len(clock.waits) > before + 2)


def test_objects_outlive_a_folder_by_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder, away, clock = tmp_path / "manifests", tmp_path / "away", Hands()
    write(folder / "a.yaml", service("a"))
    with following(folder, clock) as recorder:
        recorder.until(lambda seen: seen == ["+a", "=a"])
        folder.rename(away)
        looks(clock)
        clock.time = 0.9
        looks(clock)
        away.rename(folder)
        write(folder / "b.yaml", service("b"))
        recorder.until(lambda seen: seen[2:] == ["+b"])
        folder.rename(away)
        looks(clock)
        clock.time = 2.0
        recorder.until(lambda seen: sorted(seen[3:]) == ["-a", "-b"])
        away.rename(folder)
        recorder.until(lambda seen: sorted(seen[5:]) == ["+a", "+b"])
    lines = [each for each in caplog.messages if "exist" in each]
    assert lines == [
        f"{folder} does not exist any more; removing its objects",
        f"{folder} exists again, reading it",
    ]


def test_changes_that_the_watch_misses_are_found(tmp_path: Path) -> None:
    folder, clock = tmp_path / "manifests", Hands()
    write(tmp_path / "elsewhere" / "a.yaml", service("a"))
    folder.mkdir()
    (folder / "a.yaml").symlink_to(tmp_path / "elsewhere" / "a.yaml")
    with following(folder, clock) as recorder:
        recorder.until(lambda seen: seen == ["+a", "=a"])
        write(tmp_path / "elsewhere" / "a.yaml", service("b"))
        clock.time = 5.0
        recorder.until(lambda seen: sorted(seen[2:]) == ["+b", "-a"])


def test_files_in_new_folders_are_found(tmp_path: Path) -> None:
    # Its time stands still, so that files are not compared.
    with following(tmp_path, Hands()) as recorder:
        recorder.until(lambda seen: seen == ["="])
        for number in range(40):
            (tmp_path / f"{number}" / "sub.yaml").mkdir(parents=True)
            write(tmp_path / f"{number}" / "sub.yaml" / "a.yaml", service(f"a{number}"))
        recorder.until(lambda seen: len(set(seen)) == 41)
        write(tmp_path / "7" / "sub.yaml" / "b.yaml", service("b"))
        recorder.until(lambda seen: seen[41:] == ["+b"])
        shutil.rmtree(tmp_path / "7")
        recorder.until(lambda seen: sorted(seen[42:]) == ["-a7", "-b"])


def test_a_file_that_cannot_be_examined_keeps_its_objects(tmp_path: Path) -> None:
    write(tmp_path / "1.yaml", service("a"))
    (tmp_path / ".real").mkdir()
    write(tmp_path / ".real" / "2.yaml", service("b"))
    (tmp_path / "sub").symlink_to(".real")
    with following(tmp_path) as recorder:
        recorder.until(lambda seen: "=a,b" in seen)
        for name in ("1.yaml", "sub"):
            # ENAMETOOLONG, which root gets as well, unlike EACCES.
            (tmp_path / ".new").symlink_to("x" * 300)
            (tmp_path / ".new").rename(tmp_path / name)
        write(tmp_path / "3.yaml", service("c"))
        recorder.until(lambda seen: "+c" in seen)
        assert not any(each.startswith("-") for each in recorder.services())


def test_a_relative_path_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifests").mkdir()
    monkeypatch.chdir(tmp_path / "manifests")
    with following(Path("../manifests")) as recorder:
        recorder.until(lambda seen: seen == ["="])
        write(tmp_path / "manifests" / "a.yaml", service("a"))
        recorder.until(lambda seen: seen[1:] == ["+a"])


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

    monkeypatch.setattr(manifest_folder, "watch", refuse)
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


def test_stop_ends_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "STOP_TIMEOUT", PATIENCE)
    before = set(threading.enumerate())
    recorder = Recorder()
    source = ManifestSource(tmp_path, "node-a", recorder)
    source.stop()
    source = ManifestSource(tmp_path, "node-a", recorder)
    source.start()
    recorder.until(lambda seen: seen == ["="])
    source.stop()
    assert set(threading.enumerate()) <= before
