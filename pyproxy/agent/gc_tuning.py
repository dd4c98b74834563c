"""The thresholds of Python's garbage collector.

At a start the number of live objects grows with imports and lists. Each collection walks many of
them and frees almost nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_DEFAULT = gc.get_threshold()
# Allocations minus deallocations before a collection of the youngest generation, then the number of
# collections of each generation before one of the next older generation.
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


@contextmanager
def observed(callback: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """Call `callback` at the start and the stop of each collection, as gc.callbacks does."""
    gc.callbacks.append(callback)
    try:
        yield
    finally:
        gc.callbacks.remove(callback)


def exempt() -> None:
    """Exempt all present objects from collection for good, as after imports: modules stay."""
    # The permanent generation of gc.freeze is never walked, and reference counting still frees it.
    gc.freeze()


def freeze() -> None:
    """Set the default thresholds, and exempt all present objects from collection for good.

    Garbage among them would stay. A collection before the freeze was measured to find none.
    """
    exempt()
    gc.set_threshold(*_DEFAULT)
