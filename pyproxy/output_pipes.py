"""Standard output and standard error as pipes whose reader ends first, such as `head`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import TextIO


def run(command: Callable[[], int]) -> int:
    """Call `command`, and return its exit status.

    The end of a reader ends the command without a message. The status is 0 then, unless the command
    had returned another one. Raises the errors of `command`; a BrokenPipeError of another pipe or
    socket is one of them.
    """
    status = 0
    try:
        try:
            status = command()
        finally:
            # Also after a SystemExit of --help. Python would write the rest at its end, too late to
            # handle the error. There is no stream if the descriptor is closed.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        broken = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not broken:
            raise
        _discard(broken)
    return status


def _has_no_reader(stream: TextIO | None) -> bool:
    if stream is None:
        return False
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # not a file, or closed
        return False
    # The kubectl plugin runs on systems without poll.
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


def _discard(streams: list[TextIO]) -> None:
    """Send what is left in the buffers to nowhere, because Python writes it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
