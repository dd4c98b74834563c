"""Pages, search, diagram and timeline, as pure functions of values."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.errors import Problem, UsageError
from pyproxy.inspect.services import EndpointView, FrontendView, PortView
from pyproxy.inspect.snapshot import Change
from pyproxy.ui import pages
from pyproxy.ui.diagram import draw
from pyproxy.ui.search import PAGE_SIZE, Filter, SearchQuery, search
from pyproxy.ui.server import is_trusted_host
from pyproxy.ui.timeline import SECONDS, Recorder, Timeline

from .snapshots import HOSTILE, FakeAgent, service, snapshot

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
    taken = snapshot(odd, service("even"))
    assert search(taken, SearchQuery(filter=Filter.NO_ENDPOINTS)).total == 2
    assert [row.name.name for row in search(taken, SearchQuery(filter=Filter.INVALID)).rows] == [
        "odd"
    ]
    assert "spec.externalIPs[0]" in pages.overview(taken, SearchQuery())


@given(st.text(min_size=1, max_size=40) | st.just(HOSTILE))
def test_names_and_queries_are_escaped(text: str) -> None:
    taken = snapshot(service(text), service("b"))
    shown = pages.overview(taken, SearchQuery(q=text)) + pages.overview(taken, SearchQuery())
    assert "<img" not in shown
    assert shown.count("<script") == 2 * 2  # those of base.html


def test_an_unknown_service_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="this node does not serve shop/none"):
        pages.service(MANY, "shop/none")


def port(frontends: int, used: int, unused: int) -> PortView:
    return PortView(
        name="http",
        family="IPv4",
        protocol="TCP",
        port=80,
        node_port=0,
        frontends=tuple(
            FrontendView("clusterIP", f"10.96.0.{n}", 80, "cluster") for n in range(frontends)
        ),
        endpoints=tuple(
            EndpointView(f"10.244.0.{n}:8080", "node-a", "", "all" * (n < used), "not ready")
            for n in range(used + unused)
        ),
        hints="",
    )


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_boxes_do_not_overlap_and_lie_within_the_diagram(
    frontends: int, used: int, unused: int
) -> None:
    diagram = draw(port(frontends, used, unused))
    for box in diagram.boxes:
        assert box.x >= 0
        assert box.x + box.width <= 960
        assert box.y >= -10
        assert box.y + box.height <= diagram.height + 10
    for column in {box.x for box in diagram.boxes}:
        rows = [box.y for box in diagram.boxes if box.x == column]
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("frontends", "used", "unused", "curves"),
    [(1, 3, 2, 4), (2, 0, 2, 2), (0, 0, 0, 1), (3, 1, 0, 4)],
)
def test_curves_lead_to_used_endpoints_only(
    frontends: int, used: int, unused: int, curves: int
) -> None:
    diagram = draw(port(frontends, used, unused))
    assert len(diagram.curves) == curves


def change(ended: float, latency: float) -> Change:
    return Change("shop/web", "changed", 3, ended, latency / 2, latency)


def test_a_timeline_has_the_maximum_of_each_second_and_drops_old_seconds() -> None:
    timeline = Timeline()
    for ended, latency in ((10.1, 0.2), (10.9, 0.7), (10.5, 0.4), (12.0, 0.1)):
        timeline.add_change(change(ended, latency))
    assert [(m.second, m.changes, m.latency, m.sync_duration) for m in timeline.moments(12.0)] == [
        (10, 3, 0.7, 0.35),
        (12, 1, 0.1, 0.05),
    ]
    for second in range(1000, 1000 + 2 * SECONDS):
        timeline.add_change(change(second, 0.1))
    assert len(timeline.moments(1000.0 + 2 * SECONDS)) < SECONDS
    assert len(timeline.moments(0.0)) == SECONDS


def test_counters_are_read_every_five_seconds_while_the_page_has_viewers() -> None:
    now, has_viewers, read_at = [0.0], [False], []

    def count() -> int | None:
        read_at.append(now[0])
        return None if len(read_at) == 1 else 30

    timeline = Timeline()
    agent = FakeAgent(snapshot())
    recorder = Recorder(agent, timeline, lambda: now[0], count, lambda: has_viewers[0])
    for second in range(30):
        now[0], has_viewers[0] = float(second), second >= 10
        recorder.record_connections()
    assert read_at == [10.0, 15.0, 20.0, 25.0]
    assert [(m.second, m.connections) for m in timeline.moments(30.0)] == [
        (15, 6.0),
        (20, 6.0),
        (25, 6.0),
    ]


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("127.0.0.1:10260", True),
        ("localhost:10260", True),
        ("[::1]:10260", True),
        ("10.0.0.7", True),
        ("evil.example:10260", False),
        ("", False),
    ],
)
def test_only_addresses_and_localhost_are_trusted_hosts(host: str, trusted: bool) -> None:
    assert is_trusted_host(host) is trusted
