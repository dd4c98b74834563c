"""When Python's garbage collector looks for garbage.

What a start imports and lists is there to stay. There is more and more of it, and each look walks
much of it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_USUAL = gc.get_threshold()
_SELDOM = (50_000, 20, 1_000)


@contextmanager
def seldom() -> Iterator[None]:
    """Inside it the collector looks seldom, until `settle`."""
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*_USUAL)


@contextmanager
def never() -> Iterator[None]:
    """Inside it the collector rests."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settle() -> None:
    """Have it look as usual from now on, and never again at what is there now.

    Garbage would stay with that, but a look at all of it was seen to find none.
    """
    gc.freeze()
    gc.set_threshold(*_USUAL)
