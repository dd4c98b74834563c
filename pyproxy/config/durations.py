"""Spans of time as Go programs write them, in seconds here.

Facts: Go's time.ParseDuration and Duration.String.
"""

from __future__ import annotations

import re

_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    # Go accepts both characters: U+00B5, the micro sign, and U+03BC, the Greek letter.
    "µs": 10**3,
    "\N{GREEK SMALL LETTER MU}s": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_AMOUNT = re.compile(rf"(?=[.\d])(\d*)(?:\.(\d*))?({'|'.join(_NANOSECONDS)})", re.ASCII)
_MAX_NANOSECONDS = 2**63 - 1  # Go's Duration is an int64


def parse(value: str) -> float:
    """Read `1h0m0s`, `1.5s`, `500ms` or `0` as seconds. Raises ValueError."""
    sign, rest = (-1, value[1:]) if value.startswith("-") else (1, value.removeprefix("+"))
    if rest == "0":
        return 0.0
    total, at = 0, 0
    while match := _AMOUNT.match(rest, at):
        whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
        if not whole + fraction:
            break
        # Integers, because a float cannot hold 63 bits of nanoseconds exactly.
        total += int(whole + fraction) * _NANOSECONDS[unit] // 10 ** len(fraction)
        at = match.end()
    if at != len(rest) or not at or total > _MAX_NANOSECONDS:
        raise ValueError(f"{value!r} is not a duration: write it as 500ms, 30s or 1h0m0s")
    return sign * total / 10**9


def text(seconds: float) -> str:
    """Return seconds in the notation of Go's Duration; `parse` reads the same nanosecond back."""
    nanoseconds = round(abs(seconds) * 10**9)
    sign = "-" if seconds < 0 and nanoseconds else ""
    if not nanoseconds:
        return "0s"
    for unit in ("ns", "µs", "ms"):
        if nanoseconds < _NANOSECONDS[unit] * 1000:
            return f"{sign}{_decimal(nanoseconds, _NANOSECONDS[unit])}{unit}"
    minutes, rest = divmod(nanoseconds, _NANOSECONDS["m"])
    hours, minutes_left = divmod(minutes, 60)
    head = f"{hours}h{minutes_left}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{head}{_decimal(rest, _NANOSECONDS['s'])}s"


def _decimal(amount: int, unit: int) -> str:
    whole, rest = divmod(amount, unit)
    return f"{whole}.{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else str(whole)
