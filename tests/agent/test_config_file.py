"""A configuration file that changes under a running agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyproxy.agent.config_file import LONGEST_RETRY, ConfigFile
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


class ReaderOfTwo(Reader):
    """Reads a file that names a kubeconfig, which must exist and may not be empty."""

    def __call__(self) -> Settings:
        found = super().__call__()
        if (other := self._path.with_name(found.node_name)).name != "a":
            if not other.exists():
                raise UsageError(f"{other}: no such file")
            if not other.read_text():
                raise UsageError(f"{other}: no cluster")
        return found


class Looks:
    """An agent that looks at its file every two seconds; `seconds` is its clock."""

    def __init__(self, read: Reader) -> None:
        self.seconds = 0.0
        self.file = ConfigFile(read(), read, lambda: self.seconds)

    def until_change(self, seconds: float) -> bool:
        """Return whether a look in the next seconds finds a change, and stop at it."""
        end = self.seconds + seconds
        while self.seconds < end:
            self.seconds += 2.0
            if self.file.has_changed():
                return True
        return False


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


@pytest.mark.parametrize("late", [0.0, 2.0, 60.0, 3600.0])
def test_an_error_in_another_file_is_over_when_that_file_is_right(
    path: Path, late: float, caplog: pytest.LogCaptureFixture
) -> None:
    read = ReaderOfTwo(path)
    looks = Looks(read)
    publish(path.parent, 2, "kubeconfig")
    assert not looks.until_change(4.0 + late)
    missing, empty = (
        f"{path.with_name('kubeconfig')}: {text}; the configuration in force stays"
        for text in ("no such file", "no cluster")
    )
    assert [each.message for each in looks.file.problems()] == [missing]
    path.with_name("kubeconfig").write_text("")
    assert not looks.until_change(LONGEST_RETRY + 2.0)
    assert [each.message for each in looks.file.problems()] == [empty]
    path.with_name("kubeconfig").write_text("now here")
    assert looks.until_change(LONGEST_RETRY + 2.0)
    assert looks.file.successor == Settings("kubeconfig", config_file=str(path))
    assert looks.file.problems() == ()
    assert caplog.messages == [missing, empty]


def test_an_invalid_file_is_seldom_read_again(path: Path) -> None:
    read = ReaderOfTwo(path)
    looks = Looks(read)
    publish(path.parent, 2, "?")
    assert not looks.until_change(3600.0)
    assert 3600 / LONGEST_RETRY <= read.count <= 3600 / LONGEST_RETRY + 8
    # A new content is read at once, and the pauses begin anew.
    publish(path.parent, 3, "kubeconfig")
    assert not looks.until_change(4.0)
    path.with_name("kubeconfig").write_text("now here")
    assert looks.until_change(4.0)


def test_a_valid_file_is_read_once(path: Path) -> None:
    read = ReaderOfTwo(path)
    looks = Looks(read)
    publish(path.parent, 2, "?")
    looks.until_change(60.0)
    publish(path.parent, 3, "a# by hand")
    assert not looks.until_change(4.0)
    count = read.count
    assert not looks.until_change(3600.0)
    assert read.count == count
