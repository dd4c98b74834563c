"""The folder of a lab that is up: its lock, its process, its kubeconfig and its agents' logs.

The lock is a flock of the folder itself. The kernel releases it however the process ends, so a
folder without a lock belongs to a lab that was killed. A lab makes its folder with the sticky bit,
in one system call: an empty folder with it is a lab's, and any other folder is never removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from pyproxy.errors import UsageError
from pyproxy_lab.up.options import Options

DEFAULT = Path("/run/pyproxy-lab")

_RECORD = "lab.json"
_KUBECONFIG = "admin.conf"

_MODE = 0o1755
_WRITERS = 0o022
"""The bits of group and others, which a shared folder such as /tmp has beside the sticky bit."""


class Record(msgspec.Struct, frozen=True):
    """The process of a lab, by its id and its start in the kernel's ticks, and its options.

    It is written before the process makes anything else. `proxy` says that another proxy than
    pyproxy runs.
    """

    pid: int
    start: int
    mode: str = ""
    nodes: int = 0
    dual_stack: bool = False
    proxy: bool = False


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
        """Write whose folder it is; may be cut short by SIGKILL."""
        (self.path / _RECORD).write_bytes(msgspec.json.encode(found))

    def made_by_lab(self) -> bool:
        """Return whether a lab has made the folder, rather than a person for the lab."""
        mode = os.fstat(self._handle).st_mode
        return bool(mode & stat.S_ISVTX) and not mode & _WRITERS

    def remove(self) -> None:
        """Remove the files, and the folder if a lab made it. Others can make it anew at once."""
        self.empty()
        if self.made_by_lab():
            self.path.rmdir()

    def empty(self) -> None:
        """Remove all files of the folder."""
        # The record goes last, because a folder with other files and no record is not removed.
        for path in self.path.iterdir():
            if path.name == _RECORD:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        (self.path / _RECORD).unlink(missing_ok=True)


def record(path: Path) -> Record | None:
    """Read whose folder it is; process 0 if the record was cut short, None without a record."""
    try:
        return msgspec.json.decode((path / _RECORD).read_bytes(), type=Record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Record(0, 0)


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
    """Make the folder if it is missing and lock it. Raises LockedError, OSError."""
    while True:
        path.mkdir(mode=_MODE, exist_ok=True)
        with contextlib.ExitStack() as stack:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(_up_already(path)) from None
            if _is_still(path, handle):
                stack.pop_all()
                return handle


def _is_still(path: Path, handle: int) -> bool:
    """Return whether no other process has removed the folder before it was locked."""
    with contextlib.suppress(FileNotFoundError):
        there, here = path.stat(), os.fstat(handle)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
    return False


def _up_already(path: Path) -> str:
    found = record(path)
    whose = f"process {found.pid}, {path}" if found and found.pid else str(path)
    return f"a lab is up already ({whose}): end it with `pyproxy lab down`"


def own_record(options: Options) -> Record:
    """Return the record of this process."""
    return Record(
        os.getpid(),
        _start_of(os.getpid()),
        options.mode.name,
        options.nodes,
        options.dual_stack,
        bool(options.proxy),
    )


def is_alive(found: Record) -> bool:
    """Return whether the process of a record exists."""
    return found.pid > 0 and _start_of(found.pid) == found.start


def _start_of(pid: int) -> int:
    """Return when a process was started, -1 if there is none."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    # The second field, the program's name in parentheses, may have any characters.
    return int(stat.rpartition(")")[2].split()[19])
