"""The thresholds of Python's garbage collector.

A start imports and lists a growing number of objects that stay, and each collection walks many of
them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_DEFAULT = gc.get_threshold()
_RARE = (50_000, 20, 1_000)


@contextmanager
def rare() -> Iterator[None]:
    """Collect rarely inside of it, until `freeze`."""
    gc.set_threshold(*_RARE)
    try:
        yield
    finally:
        gc.set_threshold(*_DEFAULT)


@contextmanager
def disabled() -> Iterator[None]:
    """Collect nothing inside of it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def freeze() -> None:
    """Set the default thresholds, and exempt all present objects from collection for good.

    Garbage among them would stay. A collection before the freeze was measured to find none.
    """
    gc.freeze()
    gc.set_threshold(*_DEFAULT)
