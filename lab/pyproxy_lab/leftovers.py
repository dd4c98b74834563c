"""Remove what is left of labs whose process was killed: programs, namespaces and their files.

A lab's namespaces are named `labPID-N-NAME`, by the process that made them. Rules, links and
virtual servers are in these namespaces, and end with them.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from pyproxy_lab.namespace import NETNS_FOLDER, LabError, execute

MARKER = "PYPROXY_LAB"
"""The environment variable of all programs of `pyproxy lab up`: the id of the lab's process.

It is how programs are found that have not entered their namespace yet.
"""

NETNS_FILES = Path("/etc/netns")
"""`ip netns exec` mounts the files of /etc/netns/NAME over those of /etc."""

_OWN_NAME = re.compile(r"lab(\d+)-\d+-")
_ROUNDS = 20
_PATIENCE = 5.0
"""Seconds in which a killed program must end; one in an uninterruptible call takes longer."""


def remove_abandoned() -> None:
    """Remove the leftovers of all labs whose process no longer exists."""
    for pid in {_maker(path) for folder in _folders() for path in folder.glob("lab*")}:
        if pid is not None and not Path("/proc", str(pid)).exists():
            remove(pid)


def remove(pid: int) -> None:
    """Remove the programs, namespaces and files of the labs that process `pid` has made.

    Blocks until the programs have ended. May be called again, and while another process does the
    same. Raises LabError where a program does not end.
    """
    for _ in range(_ROUNDS):
        # A program may have started another one before it was killed.
        programs = set(_programs(pid))
        if not programs:
            break
        for each in programs:
            _kill(each)
    else:
        raise LabError(f"programs of the lab of process {pid} do not end: {sorted(programs)}")
    for path in NETNS_FOLDER.glob(f"lab{pid}-*"):
        execute(["ip", "netns", "del", path.name], check=False)
    for path in NETNS_FILES.glob(f"lab{pid}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _folders() -> tuple[Path, Path]:
    return NETNS_FOLDER, NETNS_FILES


def _maker(path: Path) -> int | None:
    found = _OWN_NAME.match(path.name)
    return int(found[1]) if found else None


def _programs(pid: int) -> Iterator[int]:
    """Find the programs in the lab's namespaces, and those with its marker."""
    for path in NETNS_FOLDER.glob(f"lab{pid}-*"):
        listed = execute(["ip", "netns", "pids", path.name], check=False)
        yield from map(int, listed.stdout.split())
    marker = f"{MARKER}={pid}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        # The process may have ended, or belong to another user namespace.
        with contextlib.suppress(OSError):
            environment = (path / "environ").read_bytes()
            if int(path.name) != os.getpid() and marker in environment.split(b"\0"):
                yield int(path.name)


def _kill(pid: int) -> None:
    """Kill a process, and wait until it has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        ended.poll(_PATIENCE * 1000)
    finally:
        os.close(handle)
