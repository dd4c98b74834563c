"""The demo's printed lines: headings, actions, results and checks."""

from __future__ import annotations

from collections.abc import Mapping

from pyproxy_lab.namespace import LabError


def heading(text: str) -> None:
    """Print the heading of a chapter."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def note(text: str) -> None:
    """Print an action or a state."""
    print(f"  {text}", flush=True)


def result(text: str) -> None:
    """Print a result."""
    print(f"  > {text}", flush=True)


def check(held: bool, text: str) -> None:
    """Print a check that holds. Raises LabError where it does not."""
    if not held:
        raise LabError(f"check failed: {text}")
    print(f"  ok: {text}", flush=True)


def shares(counts: Mapping[str, int]) -> str:
    """Return the number of responses of each pod as text."""
    return ", ".join(f"{name} {count}x" for name, count in sorted(counts.items()))
