"""When to sweep which frontends' flows: at once, a second time, and again after failures.

A packet that met the old rules during a commit may add its entry after the first sweep, so there is
a second one. A frontend that changes again starts over. Times are in seconds of the caller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pyproxy.dataplane.conntrack.frontends import FrontendKey

SECOND_SWEEP = 1.0
"""Seconds between both sweeps: packets pass the node in far less, even through a shaper's queue."""

RETRY_DELAYS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Seconds before each retry; short at first, because clients wait and most failures pass."""


LAST_DELAY = 300.0
"""Seconds between all later retries, as long as the failure lasts."""

MOST_FAILED = 10_000
"""Frontends that are queued after failures; of more, the rest is given up."""


class Recheck(msgspec.Struct, frozen=True, gc=False):
    """A frontend's place in the queue."""

    due: float
    failures: int = 0
    second: bool = False


class RecheckQueue:
    """The frontends to sweep, each with its time."""

    def __init__(self) -> None:
        self._rechecks: dict[FrontendKey, Recheck] = {}

    def __len__(self) -> int:
        return len(self._rechecks)

    def add(self, keys: Iterable[FrontendKey], now: float) -> None:
        """Make frontends due now, with all retries and the second sweep ahead of them."""
        for key in keys:
            self._rechecks[key] = Recheck(now)

    def due(self) -> float | None:
        """Return when the next sweep is due; None if the queue is empty."""
        return min((recheck.due for recheck in self._rechecks.values()), default=None)

    def take(self, now: float) -> dict[FrontendKey, Recheck]:
        """Remove and return what is due."""
        due = {key: recheck for key, recheck in self._rechecks.items() if recheck.due <= now}
        for key in due:
            del self._rechecks[key]
        return due

    def finish(
        self, taken: Mapping[FrontendKey, Recheck], failed: frozenset[FrontendKey], now: float
    ) -> frozenset[FrontendKey]:
        """Queue second sweeps and retries of `taken`; return frontends that are given up."""
        given_up: set[FrontendKey] = set()
        room = MOST_FAILED - len(self._rechecks)
        for key, recheck in taken.items():
            # A commit has queued the frontend again during the sweep, with all its retries.
            if key in self._rechecks:
                continue
            if key not in failed:
                if not recheck.second:
                    self._rechecks[key] = Recheck(now + SECOND_SWEEP, second=True)
            elif room > 0:
                delays, failures = RETRY_DELAYS, recheck.failures
                due = now + (delays[failures] if failures < len(delays) else LAST_DELAY)
                self._rechecks[key] = Recheck(due, failures + 1, recheck.second)
                room -= 1
            else:
                given_up.add(key)
        return frozenset(given_up)
