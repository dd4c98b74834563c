"""Delays between retries: exponential, bounded, optionally with full jitter."""

from __future__ import annotations

from random import Random


class Backoff:
    """Delays in seconds that double from `first` up to `longest`.

    With `jitter` each delay is drawn uniformly between zero and its ceiling ("full jitter"), which
    spreads the requests of a thousand nodes that lost the same server at the same moment. Pure: it
    neither sleeps nor reads a clock. Not thread-safe.
    """

    def __init__(self, first: float, longest: float, jitter: Random | None = None) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self._ceiling = first
        self.failures = 0

    def next(self) -> float:
        """Count one more failure and return the seconds to wait before the next attempt."""
        ceiling = self._ceiling
        self.failures += 1
        self._ceiling = min(2 * ceiling, self._longest)
        return ceiling if self._jitter is None else self._jitter.uniform(0, ceiling)

    def reset(self) -> None:
        """Start again with the first delay, after a success."""
        self._ceiling = self._first
        self.failures = 0
