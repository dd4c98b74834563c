"""Durations, times, counts and lists as text for people."""

from __future__ import annotations

import time
from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Return a duration with the unit that suits it: `3.2 ms`, `4.0 s`, `2 h 5 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def clock(seconds: float) -> str:
    """Return a time since the epoch in RFC 3339 format with milliseconds, in UTC."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def count(number: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun: `1 endpoint`, `10,000 endpoints`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listed(texts: Sequence[str], limit: int = 5) -> str:
    """Return the first `limit` texts separated by commas, and the number of the others."""
    rest = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {rest} more" if rest > 0 else "")
