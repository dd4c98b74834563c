"""Tables and what lies between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.dataplane.diff import Delta, apply, diff

Table = dict[str, dict[bytes, bytes]]

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
TABLES = st.dictionaries(
    st.sampled_from(["services4", "services6", "endpoints4"]),
    st.dictionaries(KEYS, st.sampled_from([b"", b"1", b"2"])),
)


def without_empty(table: Table) -> Table:
    return {name: rows for name, rows in table.items() if rows}


@given(TABLES, TABLES)
def test_the_delta_leads_from_one_state_to_the_other(before: Table, after: Table) -> None:
    assert apply(diff(before, after), before) == without_empty(after)


@given(TABLES, TABLES)
def test_no_unchanged_row_is_written(before: Table, after: Table) -> None:
    delta = diff(before, after)
    for name in {*before, *after}:
        held, wanted = before.get(name, {}), after.get(name, {})
        same = {key for key in held if key in wanted and wanted[key] == held[key]}
        assert not same & {*delta.remove.get(name, {}), *delta.add.get(name, {})}
        assert all(held[key] == value for key, value in delta.remove.get(name, {}).items())
    assert bool(delta) == (without_empty(before) != without_empty(after))


@given(TABLES)
def test_equal_states_have_no_delta(table: Table) -> None:
    assert not diff(table, table)


@given(TABLES, TABLES, TABLES)
def test_deltas_can_be_applied_one_after_the_other(one: Table, two: Table, three: Table) -> None:
    half = apply(diff(one, two), one)
    assert apply(diff(two, three), half) == apply(diff(one, three), one)


def test_removing_a_missing_row_is_an_error() -> None:
    with pytest.raises(KeyError):
        apply(Delta({"services4": {b"a": b""}}, {}), {"services4": {}})


def test_adding_an_existing_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="services4: b'a' exists already"):
        apply(Delta({}, {"services4": {b"a": b"1"}}), {"services4": {b"a": b""}})
