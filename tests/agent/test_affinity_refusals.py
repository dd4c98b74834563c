"""Connections whose client could not be remembered, from counters that come and go."""

from __future__ import annotations

import pytest

from pyproxy.agent.affinity_refusals import AffinityRefusals
from pyproxy.errors import KernelError, Problem
from pyproxy.model.objects import ObjectName
from tests.builders import name

A, B = b"a", b"b"


@pytest.mark.parametrize(
    ("counts", "total"),
    [
        ([{A: 1}, {A: 5}, {A: 5}], 5),
        # The counter of one frontend ends while that of another goes on.
        ([{A: 100, B: 10}, {B: 20}, {B: 30}], 130),
        # One begins anew.
        ([{A: 100}, {A: 40}, {}, {A: 3}], 143),
    ],
)
def test_each_connection_is_counted_once(counts: list[dict[bytes, int]], total: int) -> None:
    now, reported, left = 0.0, list[Problem](), list(counts)
    refusals = AffinityRefusals(lambda: {name("web"): left.pop(0)}, reported.append, lambda: now)
    for _ in counts:
        refusals.check()
        now += 10
    (metric,) = refusals.collect()
    assert metric.samples[0].value == total
    assert len(reported) == 1


def test_an_unreadable_counter_is_read_again() -> None:
    now, results = 0.0, [{A: 2}, None, {A: 3}]

    def read() -> dict[ObjectName, dict[bytes, int]]:
        found = results.pop(0)
        if found is None:
            raise KernelError("busy", 16)
        return {name("web"): found}

    refusals = AffinityRefusals(read, lambda _: None, lambda: now)
    for _ in range(3):
        refusals.check()
        now += 10
    (metric,) = refusals.collect()
    assert metric.samples[0].value == 3
