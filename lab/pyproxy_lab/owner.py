"""The process that a lab belongs to, as the names of its namespaces state it.

Process ids are used again, so the start of the process goes with its id.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Self

import msgspec

_NAME = re.compile(r"lab(\d+)-(\d+)-\d+-")


class Owner(msgspec.Struct, frozen=True):
    """A process by its id and its start, in the kernel's ticks since the boot."""

    pid: int
    start: int

    @classmethod
    def this_process(cls) -> Self:
        """Return this process."""
        return cls(os.getpid(), _start_of(os.getpid()))

    @classmethod
    def of(cls, name: str) -> Self | None:
        """Return whose a namespace is by its name, None if no lab names one so."""
        found = _NAME.match(name)
        return cls(int(found[1]), int(found[2])) if found else None

    def __str__(self) -> str:
        return f"{self.pid}-{self.start}"

    @property
    def is_alive(self) -> bool:
        """Whether the process exists; a later one with its id is another process."""
        return self.pid > 0 and _start_of(self.pid) == self.start

    def network(self, number: int) -> str:
        """Return what the names of the namespaces of its network `number` begin with."""
        return f"lab{self}-{number}"


def _start_of(pid: int) -> int:
    """Return when a process was started, -1 if there is none."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    # The second field, the program's name in parentheses, may have any characters.
    return int(stat.rpartition(")")[2].split()[19])
