"""The pictures of the dashboard: every row can be drawn, and values have Grafana's units."""

from __future__ import annotations

import io
import math

import pytest
from PIL import Image

from tools.pictures import dashboard
from tools.pictures.draw import draw_row
from tools.pictures.prometheus import SCRAPE_INTERVAL, Series
from tools.pictures.series import Line, Window, line_of
from tools.pictures.units import in_unit

from .manifests import MONITORING

DASHBOARD = dashboard.load(MONITORING / "dashboard.json")
WINDOW = Window(1_000_000.0, 1_000_600.0)
LINES = [
    Line("node-a", [WINDOW.start, WINDOW.start + 15, WINDOW.end], [0.0, math.nan, 3e6]),
    Line("node-b", [WINDOW.start, WINDOW.start + 15, WINDOW.end], [1.0, 0.02, 0.5]),
]


def test_the_first_row_is_drawn_with_data_and_without() -> None:
    row, panels = next(DASHBOARD.rows())
    full, empty = (draw_row(row, [(p, lines) for p in panels], WINDOW) for lines in (LINES, []))
    assert Image.open(io.BytesIO(full)).size == Image.open(io.BytesIO(empty)).size
    assert full != empty


def test_every_panel_has_a_kind_and_a_unit_that_are_drawn() -> None:
    for _, panels in DASHBOARD.rows():
        for panel in panels:
            assert panel.type in {"stat", "state-timeline", "timeseries"}, panel.title
            assert in_unit(1.0, panel.field_config.defaults.unit), panel.title


def test_rows_have_distinct_files() -> None:
    rows = [row.slug for row, _ in DASHBOARD.rows()]
    assert rows[0] == "now"
    assert len(set(rows)) == len(rows)


def test_a_series_is_named_by_the_legend_and_broken_at_missing_scrapes() -> None:
    values = [(0.0, "1"), (SCRAPE_INTERVAL, "2"), (SCRAPE_INTERVAL * 4.0, "3")]
    line = line_of(
        Series({"phase": "plan", "instance": "a"}, values), "{{phase}} of {{ instance }}"
    )
    assert line.name == "plan of a"
    assert line.times == [0, SCRAPE_INTERVAL, SCRAPE_INTERVAL * 2, SCRAPE_INTERVAL * 4]
    assert [value for value in line.values if not math.isnan(value)] == [1, 2, 3]
    assert math.isnan(line.values[2])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"),
        (0.00049, "s", "490 µs"),
        (0.0352, "s", "35.2 ms"),
        (59.6, "s", "59.6 s"),
        (180, "s", "3 min"),
        (5400, "s", "1.5 h"),
        (0.83219, "percentunit", "83.2%"),
        (44.5 * 2**20, "bytes", "44.5 MiB"),
        (0, "bytes", "0 B"),
        (12345, "Bps", "12.3 kB/s"),
        (1e6, "short", "1 M"),
        (0.004, "short", "0.004"),
        (9.97, "ops", "9.97 ops/s"),
        (0.25, "reqps", "0.25 req/s"),
        (math.nan, "s", ""),
    ],
)
def test_values_in_units(value: float, unit: str, text: str) -> None:
    assert in_unit(value, unit) == text
