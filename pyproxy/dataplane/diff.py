"""What must change for one state to become another.

A state is a table of tables: the name of a kernel object (a set, a chain), and its rows by key.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Delta(msgspec.Struct, Generic[K, V], frozen=True):
    """Rows to remove, and then rows to add; a row whose value changes is in both."""

    remove: dict[str, dict[K, V]]
    add: dict[str, dict[K, V]]

    def __bool__(self) -> bool:
        return bool(self.remove or self.add)


def diff(before: Mapping[str, Mapping[K, V]], after: Mapping[str, Mapping[K, V]]) -> Delta[K, V]:
    """Compare two states; the fewest rows are written."""
    remove: dict[str, dict[K, V]] = {}
    add: dict[str, dict[K, V]] = {}
    alike: set[str] = set()
    for name, rows in before.items():
        wanted = after.get(name, {})
        if rows == wanted:  # as after a restart, when that is soonest found out of all rows at once
            alike.add(name)
            continue
        gone = _other(rows, wanted)
        if gone:
            remove[name] = gone
    for name, rows in after.items():
        if name in alike:
            continue
        held = before.get(name, {})
        new = _other(rows, held)
        if new:
            add[name] = new
    return Delta(remove, add)


def _other(rows: Mapping[K, V], than: Mapping[K, V]) -> dict[K, V]:
    """Pick the rows that differ from those of the same keys; on a first sync all do."""
    if not than:
        return dict(rows)
    return {key: value for key, value in rows.items() if than.get(key) != value}


def apply(delta: Delta[K, V], state: Mapping[str, Mapping[K, V]]) -> dict[str, dict[K, V]]:
    """Say what a state becomes by a delta, as the kernel would.

    Raises KeyError where the kernel would answer ENOENT, for a row to remove that is not there,
    and ValueError where it would answer EEXIST, for one to add that is.
    """
    result = {name: dict(rows) for name, rows in state.items()}
    for name, gone in delta.remove.items():
        for key in gone:
            del result[name][key]
    for name, new in delta.add.items():
        rows = result.setdefault(name, {})
        for key, value in new.items():
            if key in rows:
                raise ValueError(f"{name}: {key!r} is already there")
            rows[key] = value
    return {name: rows for name, rows in result.items() if rows}
