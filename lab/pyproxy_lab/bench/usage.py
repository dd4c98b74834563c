"""CPU time and memory of a process and its children, from /proc."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
_PERIOD = 0.02


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process, with those of its children that have ended."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[11:15])) / _TICKS


def memory(pid: int, field: str) -> int:
    """Return VmRSS, what is resident now, or VmHWM, the most that ever was, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), 0)


def _helpers(pid: int, program: str) -> list[int]:
    children = _children(pid)
    # A child that has not become its program yet shares all memory with its parent.
    found = [child for child in children if _program(child) not in {"", program}]
    found += [each for child in children for each in _helpers(child, program)]
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    # A process, or a thread of it, may end at any moment.
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                children = Path(f"/proc/{pid}/task/{task}/children").read_text()
                found += map(int, children.split())
    return found


def _program(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""


class Peak:
    """A context manager: inside it the programs that a process runs are looked at.

    `helpers` is the most that they had resident together, in bytes, in looks 20 ms apart.
    """

    def __init__(self, pid: int) -> None:
        self.helpers = 0
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="peak")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(_PERIOD):
            helpers = _helpers(self._pid, _program(self._pid))
            now = sum(memory(helper, "VmRSS") for helper in helpers)
            self.helpers = max(self.helpers, now)
