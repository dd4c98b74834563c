"""Searching Services: words, filters, pages."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.errors import Problem
from pyproxy.ui import pages
from pyproxy.ui.search import PAGE_SIZE, Filter, SearchQuery, search

from .snapshots import service, snapshot

MANY = snapshot(*(service(f"s-{n:03}", f"10.96.1.{n}", 1000 + n) for n in range(120)))


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (SearchQuery("s-007"), ["s-007"]),
        (SearchQuery("SHOP/s-00 1009"), ["s-009"]),
        (SearchQuery("10.96.1.11"), ["s-011", *(f"s-{n}" for n in range(110, 120))]),
        (SearchQuery("1042/tcp"), ["s-042"]),
        (SearchQuery("nothing"), []),
    ],
)
def test_a_service_must_have_all_words_of_the_search(query: SearchQuery, names: list[str]) -> None:
    found = search(MANY, query)
    assert [row.name.name for row in found.rows] == names
    assert found.total == len(names)


@given(st.integers(-3, 9))
def test_each_service_is_on_exactly_one_page(page: int) -> None:
    found = search(MANY, SearchQuery(page=page))
    assert 1 <= found.page <= found.pages == 3
    every = [search(MANY, SearchQuery(page=n)).rows for n in (1, 2, 3)]
    assert [len(rows) for rows in every] == [PAGE_SIZE, PAGE_SIZE, 20]
    assert len({row.name for rows in every for row in rows}) == 120


def test_filters_select_services_without_endpoints_and_with_invalid_fields() -> None:
    problem = Problem("Service", "shop/odd", "spec.externalIPs[0]", "is not an address")
    odd = msgspec.structs.replace(service("odd"), problems=(problem,))
    made = snapshot(odd, service("even"))
    assert search(made, SearchQuery(filter=Filter.NO_ENDPOINTS)).total == 2
    assert [row.name.name for row in search(made, SearchQuery(filter=Filter.INVALID)).rows] == [
        "odd"
    ]
    assert "spec.externalIPs[0]" in pages.overview(made, SearchQuery())
