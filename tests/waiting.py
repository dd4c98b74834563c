"""Wait for a condition, and repeat an action meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 60.0
"""Seconds after which a condition will not hold even on a loaded machine."""

RESPONSE_TIMEOUT = 10.0
"""Seconds that one probe waits for a response that must come, on a loaded machine too."""

_PAUSE = 0.02
"""Seconds between checks: many conditions start a thread and a request, which cost CPU time."""


def until(
    condition: Callable[[], object],
    what: str | Callable[[], str] = "what was waited for",
    patience: float = PATIENCE,
    pause: float = _PAUSE,
) -> float:
    """Wait until `condition` holds, and return the seconds that it took.

    Raises AssertionError with `what`, which may be a function that says how far the condition came.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began >= patience:
            text = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {patience:.0f} s: {text}")
        time.sleep(pause)
    return time.monotonic() - began


@contextmanager
def again_and_again(action: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """Repeat an action in a thread, `pause` seconds apart, until the block ends."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(pause):
            action()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
