"""Values in the units of Grafana that the dashboard uses."""

from __future__ import annotations

import math
from collections.abc import Callable

_SECONDS = (
    (3600, 3600, "h"),
    (60, 60, "min"),
    (1, 1, "s"),
    (1e-3, 1e-3, "ms"),
    (1e-6, 1e-6, "µs"),
)
_BYTES = ("B", "KiB", "MiB", "GiB")


def in_unit(value: float, unit: str) -> str:
    """Return a value with three digits at most, in a unit of Grafana. Raises KeyError."""
    return "" if math.isnan(value) else _UNITS[unit](value)


def _seconds(value: float) -> str:
    for least, size, name in _SECONDS:
        if abs(value) >= least:
            return f"{_digits(value / size)} {name}"
    return "0 s"


def _bytes(value: float) -> str:
    power = min(int(math.log(value, 1024)), len(_BYTES) - 1) if value >= 1 else 0
    return f"{_digits(value / 1024**power)} {_BYTES[power]}"


def _thousands(value: float, name: str) -> str:
    for size, prefix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_digits(value / size)} {prefix}{name}"
    return f"{_digits(value)} {name}".strip()


def _digits(value: float) -> str:
    """Round to three digits, without zeros at the end."""
    return f"{float(f'{value:.3g}'):f}".rstrip("0").rstrip(".") or "0"


_UNITS: dict[str, Callable[[float], str]] = {
    "s": _seconds,
    "bytes": _bytes,
    "Bps": lambda value: _thousands(value, "B/s"),
    "percentunit": lambda value: f"{_digits(round(value * 100, 1))}%",
    "short": lambda value: _thousands(value, ""),
    "none": lambda value: _thousands(value, ""),
    "ops": lambda value: _thousands(value, "ops/s"),
    "reqps": lambda value: _thousands(value, "req/s"),
}
