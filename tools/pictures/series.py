"""The series of a panel: its queries evaluated by Prometheus, and named as in the legend."""

from __future__ import annotations

import math
import re

import msgspec

from tools.pictures.dashboard import Panel, expanded
from tools.pictures.prometheus import SCRAPE_INTERVAL, Prometheus, Series


class Window(msgspec.Struct, frozen=True):
    """The time that a picture shows, in seconds since 1970."""

    start: float
    end: float


class Line(msgspec.Struct, frozen=True):
    """A series: its name, its times in seconds since 1970, and its values, NaN in a gap."""

    name: str
    times: list[float]
    values: list[float]


def read(server: Prometheus, panel: Panel, window: Window) -> list[Line]:
    """Return the lines of all queries of a panel, in their order."""
    lines = []
    for target in panel.targets:
        query = expanded(target.expr)
        found = server.query(query, window.start, window.end, SCRAPE_INTERVAL)
        lines += [line_of(series, target.legend_format) for series in found]
    return [line for line in lines if not all(map(math.isnan, line.values))]


def line_of(series: Series, legend: str) -> Line:
    """Return a series with its name in the legend, and NaN where scrapes are missing."""
    times, values = list[float](), list[float]()
    before = math.inf
    for at, text in series.values:
        if at - before > SCRAPE_INTERVAL * 1.5:
            times.append(before + SCRAPE_INTERVAL)
            values.append(math.nan)
        times.append(at)
        values.append(float(text))
        before = at
    return Line(_name(series.metric, legend), times, values)


def _name(labels: dict[str, str], legend: str) -> str:
    """Fill the labels into a legend such as `{{code}} of {{instance}}`."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), legend)
