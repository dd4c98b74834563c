"""The table of `pyproxy status --slow`: the slowest changes, and where their time went."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.commands.output import DIM, Part, table, text
from pyproxy.inspect.humanize import clock, count, duration
from pyproxy.inspect.slow_changes import Phases, SlowChange, SlowChanges


def show(slow: SlowChanges) -> Iterator[Part]:
    """Yield a line about the period, and a row for each change."""
    shown = f"the slowest change of a commit, {count(len(slow.changes), 'commit')}"
    yield text(f"{shown} since {clock(slow.since)}", DIM)
    if slow.changes:
        phases = map(str.upper, Phases.__struct_fields__)
        yield table(
            ("ENDED", "OBJECT", "TOTAL", *phases, "OTHERS", "MEANWHILE"),
            map(_row, slow.changes),
        )


def _row(change: SlowChange) -> tuple[str, ...]:
    name = f"{change.namespace}/{change.name}" if change.namespace else change.name
    return (
        clock(change.ended),
        f"{change.kind} {name}",
        duration(change.seconds),
        *(duration(seconds) for _, seconds in change.phases.items()),
        f"{change.coalesced:,}",
        ", ".join(f"{each.kind} {duration(each.seconds)}" for each in change.causes),
    )
