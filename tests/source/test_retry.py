"""Delays between requests."""

from __future__ import annotations

from random import Random

import pytest

from pyproxy.errors import SourceError
from pyproxy.source.client import ApiStatusError
from pyproxy.source.retry import LONGEST_RETRY_AFTER, ApiBackoff, RequestPacing


def test_a_delay_includes_retry_after_up_to_a_limit() -> None:
    backoff = ApiBackoff(Random(1))
    assert 0 <= backoff.next(SourceError("lost")) <= 0.2
    assert 7 <= backoff.next(ApiStatusError("busy", 429, 7.0)) <= 7.4
    assert backoff.next(ApiStatusError("busy", 503, 9999.0)) <= LONGEST_RETRY_AFTER + 0.8
    backoff.reset()
    assert backoff.next(SourceError("lost")) <= 0.2


@pytest.mark.parametrize(
    ("outages", "spread"), [([], 1), ([99.9], 1), ([96.0, 99.0], 4), ([10.0], 10)]
)
def test_lists_of_many_nodes_are_spread_over_as_long_as_the_outage(
    outages: list[float], spread: float
) -> None:
    delays = []
    for node in range(300):
        pacing = RequestPacing(Random(node), 0.0)
        for at in outages:
            pacing.note_outage(at)
        delays.append(pacing.before_relist(100.0))
    in_tenths = [sum(n <= 10 * delay / spread < n + 1 for delay in delays) for n in range(10)]
    assert sum(in_tenths) == 300
    assert min(in_tenths) > 10


def test_an_outage_that_is_over_spreads_no_lists() -> None:
    pacing = RequestPacing(Random(1), 0.0)
    pacing.note_outage(10.0)
    pacing.note_recovery()
    assert max(pacing.before_relist(100.0) for _ in range(100)) <= 1
