"""Waiting for something to come true, and doing something meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 60.0
"""Seconds after which what should happen soon is not going to happen on a loaded machine either."""

_PAUSE = 0.02


def until(
    condition: Callable[[], object],
    what: str = "what was waited for",
    patience: float = PATIENCE,
    pause: float = _PAUSE,
) -> float:
    """Wait until `condition` holds, and give the seconds that it took. Raises AssertionError."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < patience, f"not within {patience:.0f} s: {what}"
        time.sleep(pause)
    return time.monotonic() - began


@contextmanager
def again_and_again(action: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """Do something in a thread beside the block, `pause` seconds apart, until the block ends."""
    ending = threading.Event()

    def work() -> None:
        while not ending.wait(pause):
            action()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
