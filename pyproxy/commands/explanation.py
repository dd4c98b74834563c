"""An explanation as a table of steps, its verdict and its fix."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.commands.output import BAD, DIM, GOOD, Part, Text, table, text
from pyproxy.inspect.explain import Explanation, Result

_MARKS = {
    Result.OK: ("✓", GOOD),
    Result.FAILED: ("✗", BAD),
    Result.NOTE: ("•", "yellow"),
    Result.SKIPPED: ("-", DIM),
    Result.UNDECIDED: ("?", "yellow"),
}


def show(found: Explanation) -> Iterator[Part]:
    """Yield the steps, the verdict and the fix."""
    yield table(("", "STEP", found.target), _rows(found))
    yield text("")
    yield text(found.verdict, GOOD if found.ok else BAD)
    if found.fix:
        yield text(f"fix: {found.fix}")


def _rows(found: Explanation) -> Iterator[tuple[Text, ...]]:
    for step in found.steps:
        mark, style = _MARKS[step.result]
        yield text(mark, style), text(step.name), text(step.message)
        for line in step.details:
            yield text(""), text(""), text(line, DIM)
