"""Remove what is left of labs whose process was killed: programs, namespaces and their files.

A lab's namespaces are named `labPID-START-N-NAME`, by the process that made them. Rules, links and
virtual servers are in these namespaces, and end with them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from pyproxy_lab.namespace import NETNS_FOLDER, LabError, execute
from pyproxy_lab.owner import Owner

MARKER = "PYPROXY_LAB"
"""The environment variable of all programs of `pyproxy lab up`: the owner of the lab.

It is how programs are found that have not entered their namespace yet.
"""

NETNS_FILES = Path("/etc/netns")
"""`ip netns exec` mounts the files of /etc/netns/NAME over those of /etc."""

_ROUNDS = 20
_PATIENCE = 5.0
"""Seconds in which a killed program must end; one in an uninterruptible call takes longer."""


def remove_abandoned() -> None:
    """Remove the leftovers of all labs whose process no longer exists."""
    paths = itertools.chain(NETNS_FOLDER.glob("lab*"), NETNS_FILES.glob("lab*"))
    for owner in {Owner.of(path.name) for path in paths}:
        if owner is not None and not owner.is_alive:
            remove(owner)


def remove(owner: Owner) -> None:
    """Remove the programs, namespaces and files of the labs that a process has made.

    Blocks until the programs have ended. May be called again, and while another process does the
    same. Raises LabError where a program does not end.
    """
    for _ in range(_ROUNDS):
        # A program may have started another one before it was killed.
        programs = set(_programs(owner))
        if not programs:
            break
        for each in programs:
            _kill(each)
    else:
        raise LabError(f"programs of the lab of process {owner.pid} do not end: {sorted(programs)}")
    for path in NETNS_FOLDER.glob(f"lab{owner}-*"):
        execute(["ip", "netns", "del", path.name], check=False)
    for path in NETNS_FILES.glob(f"lab{owner}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _programs(owner: Owner) -> Iterator[int]:
    """Find the programs in the lab's namespaces, and those with its marker."""
    for path in NETNS_FOLDER.glob(f"lab{owner}-*"):
        listed = execute(["ip", "netns", "pids", path.name], check=False)
        yield from map(int, listed.stdout.split())
    marker = f"{MARKER}={owner}".encode()
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
