"""Token buckets: how often an object may cause a log line, an Event or the like."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import msgspec


class Rate(msgspec.Struct, frozen=True):
    """`burst` at once, and then one every `period` seconds."""

    burst: int
    period: float


class TokenBucket:
    """The tokens of one rate (as a GCRA). Pure: times are arguments, in seconds."""

    __slots__ = ("_full_at", "_rate", "suppressed")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        # The time at which all tokens are back, or were.
        self._full_at = 0.0
        self.suppressed = 0
        """Refusals since the caller last set this to 0."""

    def wait(self, now: float) -> float:
        """Return the seconds until a token is available, 0 if one is."""
        return max(0.0, self._full_at - now - (self._rate.burst - 1) * self._rate.period)

    def take(self, now: float, tokens: int = 1) -> None:
        """Take tokens, also more than there are: the next ones then come later."""
        self._full_at = max(self._full_at, now) + tokens * self._rate.period


class BucketTable:
    """A bucket for each key; of more than `size` keys, the one unused for the longest is dropped.

    A dropped bucket is full again when its key comes back. So a caller with unlimited keys needs
    another bucket for all of them. Not thread-safe.
    """

    def __init__(self, rate: Rate, size: int) -> None:
        self._rate = rate
        self._size = size
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def bucket(self, key: Hashable) -> TokenBucket:
        """Return the bucket of a key."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            self._buckets.move_to_end(key)
            return bucket
        bucket = self._buckets[key] = TokenBucket(self._rate)
        if len(self._buckets) > self._size:
            self._buckets.popitem(last=False)
        return bucket
