"""The difference of two states.

A state maps the name of a kernel object (a set, a chain) to its rows by key.
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
    """Return the smallest delta from one state to another."""
    remove: dict[str, dict[K, V]] = {}
    add: dict[str, dict[K, V]] = {}
    equal: set[str] = set()
    for name, rows in before.items():
        wanted = after.get(name, {})
        # After a restart most sets are equal, and one comparison of dicts is the quickest test.
        if rows == wanted:
            equal.add(name)
            continue
        gone = _differing(rows, wanted)
        if gone:
            remove[name] = gone
    for name, rows in after.items():
        if name in equal:
            continue
        held = before.get(name, {})
        new = _differing(rows, held)
        if new:
            add[name] = new
    return Delta(remove, add)


def _differing(rows: Mapping[K, V], than: Mapping[K, V]) -> dict[K, V]:
    """Return the rows that differ from those of the same keys; on a first sync all do."""
    if not than:
        return dict(rows)
    # `get` is enough, since no row's value is None.
    return {key: value for key, value in rows.items() if than.get(key) != value}


def apply(delta: Delta[K, V], state: Mapping[str, Mapping[K, V]]) -> dict[str, dict[K, V]]:
    """Return the state after a delta, as the kernel would leave it.

    Raises KeyError if a row to remove does not exist (the kernel's ENOENT), and ValueError if a
    row to add does (EEXIST).
    """
    result = {name: dict(rows) for name, rows in state.items()}
    for name, gone in delta.remove.items():
        for key in gone:
            del result[name][key]
    for name, new in delta.add.items():
        rows = result.setdefault(name, {})
        for key, value in new.items():
            if key in rows:
                raise ValueError(f"{name}: {key!r} exists already")
            rows[key] = value
    return {name: rows for name, rows in result.items() if rows}
