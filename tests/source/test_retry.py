"""Delays between requests, and log lines about outages."""

from __future__ import annotations

import logging
from random import Random

import pytest

from pyproxy.errors import SourceError
from pyproxy.model.objects import Kind
from pyproxy.source.client import ApiStatusError, UnreachableError
from pyproxy.source.retry import LONGEST_RETRY_AFTER, ApiBackoff, OutageLog

UNREACHABLE = "the API server is unreachable; the last known state stays programmed: no route"


def test_a_delay_includes_retry_after_up_to_a_limit() -> None:
    backoff = ApiBackoff(Random(1))
    assert 0 <= backoff.next(SourceError("lost")) <= 0.2
    assert 7 <= backoff.next(ApiStatusError("busy", 429, 7.0)) <= 7.4
    assert backoff.next(ApiStatusError("busy", 503, 9999.0)) <= LONGEST_RETRY_AFTER + 0.8
    backoff.reset()
    assert backoff.next(SourceError("lost")) <= 0.2


def test_an_unreachable_server_is_logged_once_for_all_kinds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    outages = OutageLog()
    for kind in (Kind.SERVICE, Kind.NODE, Kind.SERVICE):
        outages.failed(kind, UnreachableError("no route"))
    outages.succeeded(Kind.NODE)
    assert caplog.messages == [UNREACHABLE]
    outages.succeeded(Kind.SERVICE)
    assert caplog.messages[1:] == ["the API server is reachable again"]


def test_another_error_is_logged_once_for_its_kind_and_when_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    outages = OutageLog()
    for status in (403, 403, 500):
        outages.failed(Kind.SERVICE, ApiStatusError(f"status {status}", status))
    outages.succeeded(Kind.SERVICE)
    outages.succeeded(Kind.SERVICE)
    assert caplog.messages == [
        "cannot watch Service objects: status 403",
        "cannot watch Service objects: status 500",
        "watching Service objects again",
    ]
