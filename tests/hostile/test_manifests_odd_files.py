"""Odd files in a folder of manifests: each concerns itself alone, at a bounded cost."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pyproxy.errors import UsageError
from pyproxy.model.events import InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, Service
from pyproxy.source import documents
from pyproxy.source.manifests import ManifestSource, read_file
from tests.hostile.odd_files import ODD, make_odd
from tests.source.scripted import Recorder
from tests.waiting import until


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]} | spec,
    }


def write(path: Path, *objects: dict[str, Any]) -> None:
    path.write_text("\n---\n".join(json.dumps(obj) for obj in objects))


def followed(folder: Path) -> Recorder:
    """Return the events of the first reading."""
    recorder = Recorder()
    source = ManifestSource(folder, "node-a", recorder)
    source.start()
    try:
        synced = set(Kind)
        until(lambda: synced <= {e.kind for e in recorder.events if isinstance(e, Synced)})
    finally:
        source.stop()
    return recorder


def problems(recorder: Recorder) -> list[str]:
    return [str(event.problem) for event in recorder.events if isinstance(event, InvalidObject)]


MARK = '"MARK"'
VALUES: dict[str, bytes] = {
    "lone surrogate": rb'"\ud800"',
    "NaN": b"NaN",
    "number out of range": b"1e400",
    "huge integer": b"9" * 5000,
    "integer of 70 bits": b"1180591620717411303424",
    "invalid UTF-8": b'"\xff\xfe"',
}


@pytest.mark.parametrize("field", ["port", "other"])
@pytest.mark.parametrize("what", VALUES)
def test_a_value_that_no_object_has_concerns_its_object(
    tmp_path: Path, what: str, field: str
) -> None:
    bad = service("bad", ports=[{"port": 80} | {field: "MARK"}])
    text = json.dumps({"kind": "List", "items": [bad, service("a")]})
    (tmp_path / "some.json").write_bytes(text.encode().replace(MARK.encode(), VALUES[what]))
    recorder = followed(tmp_path)
    assert "+a" in recorder.services()
    found = problems(recorder)
    for event in recorder.events:
        if isinstance(event, Upsert) and isinstance(event.obj, Service):
            found += map(str, event.obj.problems)
    assert all("shop/bad" in problem for problem in found)
    if field == "port":
        assert len(found) == 1


@pytest.mark.parametrize("value", ["9" * 5000, ".nan", "2026-13-45", "!!binary '*'", "1e999999"])
def test_yaml_scalars_that_their_type_cannot_have(tmp_path: Path, value: str) -> None:
    text = f"---\n{json.dumps(service('a'))}\n---\n{json.dumps(service('b'))}\n"
    (tmp_path / "some.yaml").write_text(text.replace('"spec": {', f'"spec": {{"other": {value}, '))
    recorder = followed(tmp_path)
    assert problems(recorder) == []
    assert {"+a", "+b"} <= set(recorder.services())


def test_items_that_are_no_objects(tmp_path: Path) -> None:
    items: list[Any] = [None, 7, "x", [], {}, service("a"), {"apiVersion": "v1", "kind": "Service"}]
    (tmp_path / "some.json").write_text(json.dumps({"kind": "List", "items": items}))
    recorder = followed(tmp_path)
    assert "+a" in recorder.services()
    assert len(problems(recorder)) == 5


def test_files_that_are_none(tmp_path: Path) -> None:
    """Reading a FIFO would block, and a device may have no end."""
    write(tmp_path / "good.yaml", service("a"))
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "outer").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s.yaml"))
        recorder = followed(tmp_path)
    assert "+a" in recorder.services()
    assert problems(recorder) == []


@pytest.mark.parametrize("name", ODD)
def test_a_file_for_dry_runs_that_is_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / "some.yaml"
    make_odd(path, name)
    with pytest.raises(UsageError, match=r"cannot be read: (not a regular file|Is a directory)"):
        list(read_file(path))


def test_a_file_beyond_the_limit(tmp_path: Path) -> None:
    write(tmp_path / "good.yaml", service("a"))
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(documents.LARGEST_FILE + 1)  # sparse
    recorder = followed(tmp_path)
    assert "+a" in recorder.services()
    (problem,) = problems(recorder)
    assert f"larger than {documents.LARGEST_FILE} bytes" in problem


def test_aliases_of_aliases(tmp_path: Path) -> None:
    """A file of 1 KB that would expand to 10^12 values."""
    write(tmp_path / "good.yaml", service("a"))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 12):
        inner = ", ".join([f"*a{n - 1}"] * 10)
        lines.append(f"a{n}: &a{n} [{inner}]")
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: bomb}\n" + "\n".join(lines)
    (tmp_path / "bomb.yaml").write_text(text)
    recorder = followed(tmp_path)
    assert "+a" in recorder.services()
    (problem,) = problems(recorder)
    assert "aliases expand to more than 10,000,000 values" in problem


def test_aliases_are_understood(tmp_path: Path) -> None:
    text = json.dumps(service("a")).replace(
        '"ports": [', '"unused": &p {"port": 80}, "ports": [*p, '
    )
    (tmp_path / "some.yaml").write_text(text.replace(', {"port": 80}]', "]"))
    recorder = followed(tmp_path)
    assert "+a" in recorder.services()
    assert problems(recorder) == []
