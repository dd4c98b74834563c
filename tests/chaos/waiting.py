"""Waiting for something to come true."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 15.0
"""Seconds after which what should happen at once is not going to happen on a loaded machine."""

_PAUSE = 0.005


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> float:
    """Wait until `condition` holds, and give the seconds that it took. Raises AssertionError."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < patience, f"not within {patience:.0f} s: {what}"
        time.sleep(_PAUSE)
    return time.monotonic() - began
