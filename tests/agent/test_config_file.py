"""A configuration file that changes under a running agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyproxy.agent.config_file import ConfigFile
from pyproxy.config import Settings
from pyproxy.errors import UsageError


class Reader:
    """Reads a node's name from a file; `?` is no name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0

    def __call__(self) -> Settings:
        self.count += 1
        name = self._path.read_text().split("#")[0]
        if name == "?":
            raise UsageError(f"--config {self._path}: no name")
        name, *remarks = name.split("|")
        lines = tuple(remarks)
        return Settings(name, config_file=str(self._path), remarks=lines, file_warnings=lines)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file as a kubelet mounts a ConfigMap: behind two symbolic links."""
    publish(tmp_path, 1, "a")
    (tmp_path / "config.conf").symlink_to("..data/config.conf")
    return tmp_path / "config.conf"


def publish(folder: Path, number: int, text: str) -> None:
    (folder / f"..{number}").mkdir()
    (folder / f"..{number}" / "config.conf").write_text(text)
    (folder / "..new").symlink_to(f"..{number}")
    os.rename(folder / "..new", folder / "..data")


def has_changed(file: ConfigFile) -> bool:
    """Look twice, because the first look may find a file that is being written."""
    file.has_changed()
    return file.has_changed()


def test_a_swapped_link_is_a_change(path: Path) -> None:
    read = Reader(path)
    file = ConfigFile(read(), read)
    for _ in range(3):
        assert not has_changed(file)
    publish(path.parent, 2, "a")
    assert not has_changed(file)
    assert read.count == 2
    publish(path.parent, 3, "b")
    assert has_changed(file)
    assert file.successor is not None
    assert file.successor.node_name == "b"
    assert has_changed(file)


def test_a_change_before_the_first_look_is_one(path: Path) -> None:
    read = Reader(path)
    settings = read()
    publish(path.parent, 2, "b")
    assert has_changed(ConfigFile(settings, read))


def test_what_changes_nothing_is_no_change(path: Path) -> None:
    read = Reader(path)
    file = ConfigFile(read(), read)
    publish(path.parent, 2, "a# by hand")
    assert not has_changed(file)


def test_a_new_remark_is_logged_and_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(path.parent, 2, "a|old")
    read = Reader(path)
    file = ConfigFile(read(), read)
    publish(path.parent, 3, "a|line 3: unknown field x|old")
    for _ in range(2):
        assert not has_changed(file)
    assert caplog.messages == ["line 3: unknown field x"]


def test_a_mistake_is_told_once_and_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read = Reader(path)
    file = ConfigFile(read(), read)
    publish(path.parent, 2, "?")
    for _ in range(3):
        assert not has_changed(file)
    assert caplog.messages == [f"--config {path}: no name; the configuration in force stays"]
    path.unlink()
    assert not has_changed(file)
    publish(path.parent, 3, "c")
    path.symlink_to("..data/config.conf")
    assert has_changed(file)


def test_the_mistakes_of_the_last_content_are_kept(path: Path) -> None:
    read = Reader(path)
    file = ConfigFile(read(), read)
    found = []
    for number, text in enumerate(("a|line 3: x", "?", "a# by hand", "b|line 4: y"), 2):
        publish(path.parent, number, text)
        has_changed(file)
        found.append([each.message for each in file.problems()])
    invalid = f"--config {path}: no name; the configuration in force stays"
    assert found == [["line 3: x"], [invalid], [], ["line 4: y"]]


def test_a_pipe_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def read() -> Settings:
        raise AssertionError

    file = ConfigFile(Settings("a", config_file=str(path)), read)
    assert not has_changed(file)


def test_a_file_that_is_too_large_is_a_mistake(path: Path) -> None:
    read = Reader(path)
    file = ConfigFile(read(), read)
    publish(path.parent, 2, "?" + "#" * (2 << 20))
    assert not has_changed(file)
    assert len(file.problems()) == 1


def test_without_a_file_nothing_changes() -> None:
    def read() -> Settings:
        raise AssertionError

    assert not has_changed(ConfigFile(Settings("a"), read))


def test_a_part_of_a_file_is_not_applied(path: Path) -> None:
    read = Reader(path)
    file = ConfigFile(read(), read)
    assert not has_changed(file)
    for text in ("b", "be", "bet"):
        path.write_text(text)
        assert not file.has_changed()
    assert read.count == 2
    path.write_text("beta")
    assert has_changed(file)
    assert file.successor is not None
    assert file.successor.node_name == "beta"
