"""When to look at which frontends' flows: now, once more a little later, and again after failures.

A packet that was under way while rules were committed may have met the old ones, and its entry may
appear after the look that followed the commit. So there is a second look. A frontend that changes
again starts over. Times are in seconds of whatever clock the caller reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pyproxy.dataplane.conntrack.frontends import Key

SECOND_LOOK = 1.0
"""Packets take far less on their way through the node, even when queued for a shaper."""

RETRY_DELAYS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""A failure is first taken for a passing one: clients wait for this."""


class Visit(msgspec.Struct, frozen=True, gc=False):
    """A frontend's place on the agenda."""

    due: float
    failures: int = 0
    second: bool = False


class RecheckQueue:
    """The frontends to look at, each with its time."""

    def __init__(self) -> None:
        self._visits: dict[Key, Visit] = {}

    def __len__(self) -> int:
        return len(self._visits)

    def add(self, keys: Iterable[Key], now: float) -> None:
        """Look at frontends as soon as possible."""
        for key in keys:
            self._visits[key] = Visit(now)

    def due(self) -> float | None:
        """When the next look is due, None without any."""
        return min((visit.due for visit in self._visits.values()), default=None)

    def take(self, now: float) -> dict[Key, Visit]:
        """Remove all that is due."""
        taken = {key: visit for key, visit in self._visits.items() if visit.due <= now}
        for key in taken:
            del self._visits[key]
        return taken

    def looked(
        self, visits: Mapping[Key, Visit], failed: frozenset[Key], now: float
    ) -> frozenset[Key]:
        """Settle what was taken: plan second looks and retries; the frontends given up."""
        given_up: set[Key] = set()
        for key, visit in visits.items():
            if key in self._visits:
                continue
            if key not in failed:
                if not visit.second:
                    self._visits[key] = Visit(now + SECOND_LOOK, second=True)
            elif visit.failures < len(RETRY_DELAYS):
                due = now + RETRY_DELAYS[visit.failures]
                self._visits[key] = Visit(due, visit.failures + 1, visit.second)
            else:
                given_up.add(key)
        return frozenset(given_up)
