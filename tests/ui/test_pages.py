"""What the pages say, by values alone."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.errors import Problem, UsageError
from pyproxy.inspect.services import BackendView, FrontendView, PortView
from pyproxy.inspect.snapshot import Change
from pyproxy.ui import pages
from pyproxy.ui.history import SECONDS, Recorder, Timeline
from pyproxy.ui.picture import draw
from pyproxy.ui.search import PAGE, Only, Query, search
from pyproxy.ui.server import is_ours

from .snapshots import HOSTILE, AgentView, service, snapshot

MANY = snapshot(*(service(f"s-{n:03}", f"10.96.1.{n}", 1000 + n) for n in range(120)))


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (Query("s-007"), ["s-007"]),
        (Query("SHOP/s-00 1009"), ["s-009"]),
        (Query("10.96.1.11"), ["s-011", *(f"s-{n}" for n in range(110, 120))]),
        (Query("1042/tcp"), ["s-042"]),
        (Query("nothing"), []),
    ],
)
def test_a_search_finds_services_that_have_all_its_words(query: Query, names: list[str]) -> None:
    found = search(MANY, query)
    assert [line.name.name for line in found.lines] == names
    assert found.total == len(names)


@given(st.integers(-3, 9))
def test_pages_have_every_service_once_and_there_is_no_other_page(page: int) -> None:
    found = search(MANY, Query(page=page))
    assert 1 <= found.page <= found.pages == 3
    every = [search(MANY, Query(page=n)).lines for n in (1, 2, 3)]
    assert [len(lines) for lines in every] == [PAGE, PAGE, 20]
    assert len({line.name for lines in every for line in lines}) == 120


def test_filters_show_what_leads_nowhere_and_what_was_set_aside() -> None:
    problem = Problem("Service", "shop/odd", "spec.externalIPs[0]", "is no address")
    odd = msgspec.structs.replace(service("odd"), problems=(problem,))
    taken = snapshot(odd, service("even"))
    assert search(taken, Query(only=Only.SILENT)).total == 2
    assert [line.name.name for line in search(taken, Query(only=Only.PROBLEMS)).lines] == ["odd"]
    assert "spec.externalIPs[0]" in pages.overview(taken, Query())


@given(st.text(min_size=1, max_size=40) | st.just(HOSTILE))
def test_names_and_queries_are_text_whatever_they_contain(text: str) -> None:
    taken = snapshot(service(text), service("b"))
    shown = pages.overview(taken, Query(q=text)) + pages.overview(taken, Query())
    assert "<img" not in shown
    assert shown.count("<script") == 2 * 2  # the page's own two


def test_a_service_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="shop/none: this node serves no such Service"):
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
        backends=tuple(
            BackendView(f"10.244.0.{n}:8080", "node-a", "", "everybody" * (n < used), "not ready")
            for n in range(used + unused)
        ),
        hints="",
    )


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_no_two_boxes_of_a_picture_overlap_and_all_lie_within(
    frontends: int, used: int, unused: int
) -> None:
    picture = draw(port(frontends, used, unused))
    for box in picture.boxes:
        assert box.x >= 0
        assert box.x + box.width <= 960
        assert box.y >= -10
        assert box.y + box.height <= picture.height + 10
    for column in {box.x for box in picture.boxes}:
        rows = [box.y for box in picture.boxes if box.x == column]
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("frontends", "used", "unused", "lines"),
    [(1, 3, 2, 4), (2, 0, 2, 2), (0, 0, 0, 1), (3, 1, 0, 4)],
)
def test_lines_lead_to_the_endpoints_that_are_used(
    frontends: int, used: int, unused: int, lines: int
) -> None:
    picture = draw(port(frontends, used, unused))
    assert len(picture.lines) == lines


def change(ended: float, latency: float) -> Change:
    return Change("shop/web", "changed", 3, ended, latency / 2, latency)


def test_a_timeline_keeps_the_worst_of_each_second_and_forgets_the_old() -> None:
    timeline = Timeline()
    for ended, latency in ((10.1, 0.2), (10.9, 0.7), (10.5, 0.4), (12.0, 0.1)):
        timeline.changed(change(ended, latency))
    assert [(m.second, m.changes, m.latency, m.took) for m in timeline.moments(12.0)] == [
        (10, 3, 0.7, 0.35),
        (12, 1, 0.1, 0.05),
    ]
    for second in range(1000, 1000 + 2 * SECONDS):
        timeline.changed(change(second, 0.1))
    assert len(timeline.moments(1000.0 + 2 * SECONDS)) < SECONDS
    assert len(timeline.moments(0.0)) == SECONDS


def test_counters_are_read_while_somebody_looks_and_not_too_often() -> None:
    now, watched, asked = [0.0], [False], []

    def gained() -> int | None:
        asked.append(now[0])
        return None if len(asked) == 1 else 30

    timeline = Timeline()
    witness = AgentView(snapshot())
    recorder = Recorder(witness, timeline, lambda: now[0], gained, lambda: watched[0])
    for second in range(30):
        now[0], watched[0] = float(second), second >= 10
        recorder.count()
    assert asked == [10.0, 15.0, 20.0, 25.0]
    assert [(m.second, m.connections) for m in timeline.moments(30.0)] == [
        (15, 6.0),
        (20, 6.0),
        (25, 6.0),
    ]


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:10260", True),
        ("localhost:10260", True),
        ("[::1]:10260", True),
        ("10.0.0.7", True),
        ("evil.example:10260", False),
        ("", False),
    ],
)
def test_only_who_asks_by_address_is_answered(host: str, ours: bool) -> None:
    assert is_ours(host) is ours
