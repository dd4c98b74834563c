"""Delays between requests."""

from __future__ import annotations

from random import Random

from pyproxy.errors import SourceError
from pyproxy.source.client import ApiStatusError
from pyproxy.source.retry import LONGEST_RETRY_AFTER, ApiBackoff


def test_a_delay_includes_retry_after_up_to_a_limit() -> None:
    backoff = ApiBackoff(Random(1))
    assert 0 <= backoff.next(SourceError("lost")) <= 0.2
    assert 7 <= backoff.next(ApiStatusError("busy", 429, 7.0)) <= 7.4
    assert backoff.next(ApiStatusError("busy", 503, 9999.0)) <= LONGEST_RETRY_AFTER + 0.8
    backoff.reset()
    assert backoff.next(SourceError("lost")) <= 0.2
