"""Checks of the numbers that a person gives to a benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from pyproxy.errors import UsageError


def check_numbers(
    arguments: argparse.Namespace, counts: Iterable[str], amounts: Iterable[str]
) -> None:
    """Raise UsageError for a count below 1 and an amount below 0; both are names of arguments."""
    for name in counts:
        if getattr(arguments, name) < 1:
            raise UsageError(f"{_flag(name)} {getattr(arguments, name)}: give a number above 0")
    for name in amounts:
        if getattr(arguments, name) < 0:
            found = f"{_flag(name)} {getattr(arguments, name):g}"
            raise UsageError(f"{found}: give a number of at least 0")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
