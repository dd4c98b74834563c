"""A control group with the CPU weight of a BestEffort pod, for attackers that are pods.

On a node, kubelet gives BestEffort pods a group of 2 CPU shares, and the agent's pod one of 102,
because its manifest requests 100m. Here the agent stays where it is, in a group of the usual
weight, and the attackers get a group whose weight has the same proportion to it.

Facts: kubelet's cm package (MinShares, MilliCPUToShares), cgroup-v1 and cgroup-v2 of the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

_ROOT = Path("/sys/fs/cgroup")
_BEST_EFFORT, _AGENT = 2, 102
"""CPU shares of the group of all BestEffort pods, and of a container that requests 100m."""


class _Version(msgspec.Struct, frozen=True):
    """Where a version of control groups has the weight, and that of a group without a setting."""

    root: Path
    file: str
    usual: int


_V1 = _Version(_ROOT / "cpu", "cpu.shares", 1024)
_V2 = _Version(_ROOT, "cpu.weight", 100)


class Group(msgspec.Struct, frozen=True):
    """A group; `folder` is None if this machine lets none be made, and then nothing is limited."""

    folder: Path | None
    weight: str

    def add(self, pid: int) -> None:
        """Move a process, with all its threads, into the group."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def best_effort() -> Iterator[Group]:
    """Make the group, and remove it once its processes have ended."""
    version = _V2 if _has_cpu(_V2.root / "cgroup.subtree_control") else _V1
    # In version 2 a group has either processes or groups. In version 1 the new one competes with
    # the processes of this group, such as the agent.
    place = _V2.root if version is _V2 else _V1.root / _own_group().lstrip("/")
    folder = place / f"pyproxy-bench-{os.getpid()}"
    weight = max(version.usual * _BEST_EFFORT // _AGENT, 1)
    try:
        folder.mkdir()
    except OSError:
        yield Group(None, "that of the agent: no control group can be made here")
        return
    try:
        (folder / version.file).write_text(str(weight))
        yield Group(folder, f"{weight} of {version.usual}, as of a BestEffort pod")
    finally:
        # A process that has just ended may still be there; an empty group costs nothing.
        with suppress(OSError):
            folder.rmdir()


def _own_group() -> str:
    """Return the path of this process's group in version 1, relative to the controller's root."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return path
    return "/"


def _has_cpu(controllers: Path) -> bool:
    return controllers.is_file() and "cpu" in controllers.read_text().split()
