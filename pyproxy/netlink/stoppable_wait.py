"""Waiting for a netlink socket, in a thread that another thread can release."""

from __future__ import annotations

import os
import select
from collections.abc import Callable


class StoppableWait:
    """Waits until a descriptor has something of interest, or until `end`.

    One thread may wait, and any may call `end`.
    """

    def __init__(self) -> None:
        self._woken = os.eventfd(0, os.EFD_CLOEXEC)
        self._ended = False

    def wait(self, descriptor: int, is_of_interest: Callable[[], bool]) -> bool:
        """Block until `is_of_interest`, and return True; False after `end`.

        `is_of_interest` reads what waits at the descriptor, and may raise.
        """
        # Not select, which takes no descriptor from 1024 up.
        poll = select.poll()
        for each in (descriptor, self._woken):
            poll.register(each, select.POLLIN)
        while not self._ended:
            poll.poll()
            if not self._ended and is_of_interest():
                return True
        return False

    def end(self) -> None:
        """Make `wait` return False, now and from now on."""
        self._ended = True
        os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        """Close the descriptor of `end`, after `wait` has returned False."""
        os.close(self._woken)
