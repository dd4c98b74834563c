"""Figures and how they are printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


class Spread:
    """Many measurements of the same thing, in seconds."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = sorted(values)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self._values)

    @property
    def best(self) -> float:
        """The least."""
        return self._values[0]

    @property
    def worst(self) -> float:
        """The most."""
        return self._values[-1]

    @property
    def p99(self) -> float:
        """The one that 99 of 100 do not exceed."""
        return self._values[max(0, -(-len(self._values) * 99 // 100) - 1)]

    @property
    def ends(self) -> str:
        """The middle one of a few, and how far the others are from it."""
        return f"{duration(self.median)} ({duration(self.best)} to {duration(self.worst)})"

    def __str__(self) -> str:
        return f"median {duration(self.median)}, p99 {duration(self.p99)} of {len(self._values):,}"


def duration(seconds: float) -> str:
    """Write a time with three digits that mean something."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.3f} ms"


def mebibytes(size: float) -> str:
    """Write an amount of memory."""
    return f"{size / (1 << 20):.0f} MiB"


def heading(text: str) -> None:
    """Begin a group of figures."""
    print(f"\n{text}", flush=True)


def row(what: str, value: str, note: str = "") -> None:
    """Print one figure, and what it is to be held against."""
    print(f"  {what:<58} {value:<44} {note}".rstrip(), flush=True)
