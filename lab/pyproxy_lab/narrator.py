"""How the demo speaks: chapters, what is done, what came back, and what had to hold."""

from __future__ import annotations

from collections.abc import Mapping

from pyproxy_lab.namespace import LabError


def heading(text: str) -> None:
    """Begin a chapter."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def note(text: str) -> None:
    """Say what is done, or how things stand."""
    print(f"  {text}", flush=True)


def said(text: str) -> None:
    """Say what came back."""
    print(f"  > {text}", flush=True)


def check(held: bool, text: str) -> None:
    """Say that something holds. Raises LabError where it does not."""
    if not held:
        raise LabError(f"this should have held, and does not: {text}")
    print(f"  ok: {text}", flush=True)


def shares(counts: Mapping[str, int]) -> str:
    """Write how many answers came from whom."""
    return ", ".join(f"{name} {count}x" for name, count in sorted(counts.items()))
