"""Signals that end a command as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt inside the block for these signals, as for SIGINT.

    A command then removes what it has made. Does nothing in other threads than the main one, the
    only one that may set signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
