"""Delays between retries."""

from __future__ import annotations

from random import Random

import pytest

from pyproxy.backoff import Backoff


def test_delays_double_up_to_the_longest_and_start_again_after_a_reset() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.failures == 5
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next() == 0.5


@pytest.mark.parametrize("seed", range(20))
def test_a_jittered_delay_lies_between_zero_and_its_ceiling(seed: int) -> None:
    backoff = Backoff(0.5, 3.0, Random(seed))
    for ceiling in (0.5, 1.0, 2.0, 3.0, 3.0):
        assert 0 <= backoff.next() <= ceiling
