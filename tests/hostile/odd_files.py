"""Paths of files that are no regular files, which a program must not read."""

from __future__ import annotations

import os
from pathlib import Path

ODD = ("fifo", "device", "folder")


def make_odd(path: Path, what: str) -> None:
    """Make one of `ODD` at a path."""
    if what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
