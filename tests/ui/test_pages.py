"""HTML pages of the node and of a Service."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.errors import UsageError
from pyproxy.ui import pages
from pyproxy.ui.search import SearchQuery

from .snapshots import HOSTILE, service, snapshot


@given(st.text(min_size=1, max_size=40) | st.just(HOSTILE))
def test_names_and_queries_are_escaped(text: str) -> None:
    made = snapshot(service(text), service("b"))
    shown = pages.overview(made, SearchQuery(q=text)) + pages.overview(made, SearchQuery())
    assert "<img" not in shown
    assert shown.count("<script") == 2 * 2  # those of base.html


def test_an_unknown_service_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="this node does not serve shop/none"):
        pages.service(snapshot(service("web")), "shop/none")
