"""Durations, times, counts and lists as text."""

from __future__ import annotations

import pytest

from pyproxy.inspect.humanize import clock, count, duration, listed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.9999, "999.9 ms"),
        (1.0, "1.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (60.0, "1 min"),
        (61.0, "1 min 1 s"),
        (3600.0, "1 h"),
        (7500.0, "2 h 5 min"),
        (47 * 3600.0, "47 h"),
        (49 * 3600.0, "2 d 1 h"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_time_is_rfc_3339_in_utc_with_milliseconds() -> None:
    assert clock(1.5) == "1970-01-01T00:00:01.500Z"


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (0, ("endpoint",), "0 endpoints"),
        (1, ("endpoint",), "1 endpoint"),
        (10_000, ("endpoint",), "10,000 endpoints"),
        (2, ("stale entry", "stale entries"), "2 stale entries"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(
    number: int, nouns: tuple[str, ...], text: str
) -> None:
    assert count(number, *nouns) == text


def test_a_long_list_ends_with_the_number_of_the_others() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefg"), 3) == "a, b, c and 4 more"
