"""Slots: what stays stays where it is, and no fewer slots could have changed."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.dataplane.slots import place
from pyproxy.model.address import Backend

Slots = tuple[Backend, ...]

BACKENDS = st.integers(0, 9).map(lambda number: Backend(bytes((10, 0, 0, number, 0x1F, 0x90))))
SLOTS = st.lists(BACKENDS, unique=True, max_size=10).map(tuple)


def changed(before: Slots, after: Slots) -> int:
    """How many elements of the map are written or deleted."""
    return sum(a != b for a, b in zip(before, after, strict=False)) + abs(len(before) - len(after))


@given(SLOTS, SLOTS)
def test_remaining_endpoints_keep_their_slots(before: Slots, wanted: Slots) -> None:
    after = place(before, wanted)
    assert sorted(after) == sorted(wanted)
    for slot, backend in enumerate(before[: len(wanted)]):
        if backend in wanted:
            assert after[slot] == backend
    # A slot in use whose backend leaves must be written, and the ends' difference too: no order
    # of `wanted` does with less. An empty table is filled in the order that was asked for.
    leaving = sum(backend not in wanted for backend in before[: len(wanted)])
    assert changed(before, after) == leaving + abs(len(before) - len(wanted))


SMALL = st.lists(BACKENDS, unique=True, max_size=5).map(tuple)


@given(SMALL, SMALL)
def test_no_permutation_changes_less(before: Slots, wanted: Slots) -> None:
    least = min(changed(before, order) for order in permutations(wanted))
    assert changed(before, place(before, wanted)) == least


@given(SLOTS)
def test_equal_endpoints_keep_all_slots(slots: Slots) -> None:
    assert place(slots, tuple(sorted(slots))) == slots


@given(st.lists(BACKENDS, max_size=10).map(tuple), SLOTS)
def test_an_endpoint_in_two_slots_keeps_the_first(before: Slots, wanted: Slots) -> None:
    assert sorted(place(before, wanted)) == sorted(wanted)
