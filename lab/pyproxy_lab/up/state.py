"""The folder of a lab that is up: its lock, its process, its kubeconfig and its agents' logs.

The lock is a flock of the folder itself. The kernel releases it however the process ends, so a
folder without a lock belongs to a lab that was killed. A lab makes its folder under another name,
`.NAME.PID-START`, and renames it when it has its record; it removes it under such a name too. A
folder without a record is therefore a person's, and is never removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from pyproxy.errors import UsageError
from pyproxy_lab.owner import Owner
from pyproxy_lab.up.options import Options

DEFAULT = Path("/run/pyproxy-lab")

_RECORD = "lab.json"
_KUBECONFIG = "admin.conf"

_HIDDEN = re.compile(r"(\d+)-(\d+)")


class Record(msgspec.Struct, frozen=True):
    """The process of a lab, and its options.

    It is written before the process makes anything else. `proxy` says that another proxy than
    pyproxy runs, `made` that a lab has made the folder, rather than a person for the lab.
    """

    owner: Owner
    mode: str = ""
    nodes: int = 0
    dual_stack: bool = False
    proxy: bool = False
    made: bool = False


class LockedError(UsageError):
    """Another process has the lock."""


class StateFolder:
    """A context manager: inside it this process has the lock of the folder, which exists.

    Raises LockedError if another process has it, UsageError where the folder belongs to something
    else, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1

    def __enter__(self) -> Self:
        try:
            self._handle = _lock(self.path)
            if record(self.path) is None and any(self.path.iterdir()):
                raise UsageError(
                    f"--state {self.path}: holds other files: name a folder of its own"
                )
        except OSError as error:
            raise UsageError(f"--state {self.path}: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._handle)

    def write_record(self, found: Record) -> None:
        """Write whose folder it is; in a folder that a person made it may be cut short."""
        path = self.path / _RECORD
        if not self.made_by_lab():
            path.write_bytes(msgspec.json.encode(found))
            return
        # The record says that a lab made the folder, so there is one at every moment.
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, made=True)))
        new.replace(path)

    def made_by_lab(self) -> bool:
        """Return whether a lab has made the folder, rather than a person for the lab."""
        found = record(self.path)
        return found is not None and found.made

    def remove(self) -> None:
        """Remove the files, and the folder if a lab made it. Others can make it anew at once."""
        if self.made_by_lab():
            shutil.rmtree(self.path.rename(_hidden(self.path)))
            return
        self.empty()
        (self.path / _RECORD).unlink(missing_ok=True)

    def empty(self) -> None:
        """Remove all files of the folder but the record."""
        for path in self.path.iterdir():
            if path.name == _RECORD:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def remove_unfinished(path: Path) -> bool:
    """Remove the folders that were to become a lab's folder, or were it, when it was killed.

    Returns whether there was one.
    """
    before = f".{path.name}."
    found = [each for each in path.parent.glob(f"{before}*") if _is_abandoned(each, before)]
    for each in found:
        # Another process may be doing the same.
        shutil.rmtree(each, ignore_errors=True)
    return bool(found)


def _hidden(path: Path) -> Path:
    """Return the name under which this process makes and removes a folder."""
    return path.with_name(f".{path.name}.{Owner.this_process()}")


def _is_abandoned(path: Path, before: str) -> bool:
    numbers = _HIDDEN.fullmatch(path.name.removeprefix(before))
    return numbers is not None and not Owner(int(numbers[1]), int(numbers[2])).is_alive


def record(path: Path) -> Record | None:
    """Read whose folder it is; process 0 if the record was cut short, None without a record."""
    try:
        return msgspec.json.decode((path / _RECORD).read_bytes(), type=Record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Record(Owner(0, 0))


def kubeconfig(path: Path) -> Path:
    """Return the path of the kubeconfig for a person."""
    return path / _KUBECONFIG


def write_private(path: Path, data: bytes) -> None:
    """Write a file for the person who runs sudo, or for root alone without sudo."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "wb") as file:
        owner = [os.environ.get(name, "") for name in ("SUDO_UID", "SUDO_GID")]
        if all(each.isdigit() for each in owner):
            os.fchown(handle, *map(int, owner))
        file.write(data)


def _lock(path: Path) -> int:
    """Lock the folder; make it if it is missing. Raises LockedError, OSError."""
    while True:
        with contextlib.ExitStack() as stack:
            try:
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                _make(path)
                continue
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(_up_already(path)) from None
            if _is_still(path, handle):
                stack.pop_all()
                return handle


def _make(path: Path) -> None:
    """Make the folder with the record that a lab has made it. Raises OSError."""
    hidden = _hidden(path)
    hidden.mkdir()
    (hidden / _RECORD).write_bytes(msgspec.json.encode(Record(Owner.this_process(), made=True)))
    try:
        hidden.rename(path)
    except OSError as error:
        shutil.rmtree(hidden)
        # Another process has made it meanwhile, and may have the lock.
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise


def _is_still(path: Path, handle: int) -> bool:
    """Return whether no other process has removed the folder before it was locked."""
    with contextlib.suppress(FileNotFoundError):
        there, here = path.stat(), os.fstat(handle)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
    return False


def _up_already(path: Path) -> str:
    found = record(path)
    whose = f"process {found.owner.pid}, {path}" if found and found.owner.pid else str(path)
    return f"a lab is up already ({whose}): end it with `pyproxy lab down`"


def own_record(options: Options) -> Record:
    """Return the record of this process."""
    return Record(
        Owner.this_process(),
        options.mode.name,
        options.nodes,
        options.dual_stack,
        bool(options.proxy),
    )
