"""Draw the dashboard's rows from its own queries, at the dashboard's places, with matplotlib.

This is not Grafana: places, titles, units, thresholds, legends and queries are the dashboard's, and
the rest resembles Grafana's light theme.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator
from PIL import Image

from tools.pictures.dashboard import Grid, Panel, Step
from tools.pictures.series import Line, Window
from tools.pictures.units import in_unit

_WIDTH = 1000
_UNIT = 30
_GAP = 8
_COLUMNS = 24
_DPI = 100
_SHARPNESS = 1.6
"""Pixels of the picture for each of the layout."""

_COLOURS = ("#3274d9", "#e0752d", "#37872d", "#8f3bb8", "#0f8a8a", "#c4162a", "#8a6d3b", "#5c6370")
_STATES = {"green": "#3f9c35", "orange": "#e8820c", "red": "#d0273b"}
_BACKGROUND, _FRAME, _TEXT, _FAINT = "#f4f5f5", "#d8dbe0", "#24292e", "#6e7681"
_TITLE_HEIGHT, _AXIS_WIDTH, _AXIS_HEIGHT, _LEGEND_ROW = 28, 64, 22, 16
_NARROW = 0.35
_STEPS_OF_AXIS = 5
_SECONDS_STEPS = (15, 30, 60, 120, 300, 600, 1200, 3600)
_TICKS = (1, 2, 5, 10, 15, 30, 60)
_PALETTE = 96


def draw_row(row: Panel, panels: Sequence[tuple[Panel, list[Line]]], window: Window) -> bytes:
    """Return a PNG of a row of the dashboard, with the lines of each of its panels."""
    bottom = max(panel.grid_pos.y + panel.grid_pos.h for panel, _ in panels)
    names = dict.fromkeys(line.name for _, lines in panels for line in lines)
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    page = _Page(row.grid_pos.y, (bottom - row.grid_pos.y) * _UNIT + _GAP, colours)
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 8, "text.color": _TEXT}):
        page.text(_GAP + 4, row.grid_pos, f"▾ {row.title}", size=11)
        for panel, lines in panels:
            place = page.frame(panel.grid_pos)
            match panel.type:
                case "stat":
                    _stat(page, panel, lines, place)
                case "state-timeline":
                    _states(page, panel, lines, place, window)
                case _:
                    _graph(page, panel, lines, place, window)
        return page.png()


Box = tuple[float, float, float, float]
"""Left, bottom, width and height in pixels from the picture's lower left corner."""


class _Page:
    """A figure, measured in pixels; `top` is the dashboard's unit at its upper edge.

    `colours` are those of the lines by their name, so that a node has one in all panels of a row.
    """

    def __init__(self, top: int, height: float, colours: Mapping[str, str]) -> None:
        self.colours = colours
        self._top = top
        self._height = height
        self._figure = Figure((_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)

    def box(self, grid: Grid) -> Box:
        column = (_WIDTH - _GAP) / _COLUMNS
        upper = (grid.y - self._top) * _UNIT
        height = grid.h * _UNIT - _GAP
        left, width = _GAP + grid.x * column, grid.w * column - _GAP
        return left, self._height - upper - _GAP - height, width, height

    def frame(self, grid: Grid) -> Box:
        """Draw the background of a panel."""
        box = self.box(grid)
        self.rectangle(box, "white", _FRAME)
        return box

    def rectangle(self, box: Box, colour: str, edge: str) -> None:
        left, bottom, width, height = box
        self._figure.add_artist(
            Rectangle(
                (left / _WIDTH, bottom / self._height),
                width / _WIDTH,
                height / self._height,
                facecolor=colour,
                edgecolor=edge,
                linewidth=1,
                transform=self._figure.transFigure,
                zorder=0,
            )
        )

    def text(self, left: float, grid: Grid, text: str, size: float) -> None:
        """Write a title at the upper edge of a place."""
        _, bottom, _, height = self.box(grid)
        self.write((left, bottom + height - 4), text, size=size, va="top", weight="bold")

    def write(self, at: tuple[float, float], text: str, **style: object) -> None:
        self._figure.text(at[0] / _WIDTH, at[1] / self._height, text, **style)  # type: ignore[arg-type]

    def axes(self, box: Box) -> Axes:
        left, bottom, width, height = box
        axes = self._figure.add_axes(
            (left / _WIDTH, bottom / self._height, width / _WIDTH, height / self._height)
        )
        axes.set_facecolor("white")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=_FAINT)
        return axes

    def png(self) -> bytes:
        """Return the whole picture."""
        raw = io.BytesIO()
        self._figure.savefig(raw, format="png", dpi=_DPI * _SHARPNESS)
        return palette(raw.getvalue())


def _stat(page: _Page, panel: Panel, lines: Sequence[Line], box: Box) -> None:
    left, bottom, width, height = box
    value = lines[0].values[-1] if lines else math.nan
    colour = _STATES[_step(panel, value).color] if lines else "white"
    page.rectangle(box, colour, _FRAME)
    middle = left + width / 2
    style = {"ha": "center", "color": "white" if lines else _FAINT}
    page.write((middle, bottom + height - 20), panel.title, size=8.5, weight="bold", **style)
    shown = in_unit(value, panel.field_config.defaults.unit) if lines else "No data"
    page.write((middle, bottom + height / 2 - 20), shown, size=15.5, weight="bold", **style)


def _step(panel: Panel, value: float) -> Step:
    """Return the last step that a value has reached."""
    steps = panel.field_config.defaults.thresholds.steps
    return [each for each in steps if each.value is None or value >= each.value][-1]


def _states(page: _Page, panel: Panel, lines: Sequence[Line], box: Box, window: Window) -> None:
    left, bottom, width, height = box
    page.write((left + 10, bottom + height - 18), panel.title, size=9.5, weight="bold")
    if not lines:
        _no_data(page, panel, box)
        return
    names = 200
    inner = (left + names, bottom + _AXIS_HEIGHT, width - names - 14, height - _TITLE_HEIGHT - 26)
    axes = page.axes(inner)
    _time_axis(axes, window)
    for number, line in enumerate(reversed(lines)):
        known = [not math.isnan(value) for value in line.values]
        colour = _STATES[_step(panel, 1).color]
        axes.fill_between(
            line.times,
            number - 0.36,
            number + 0.36,
            where=known,
            color=colour,
            lw=0,
        )
    axes.set_ylim(-0.5, len(lines) - 0.5)
    axes.set_yticks(range(len(lines)), [line.name for line in reversed(lines)], color=_TEXT)


def _graph(page: _Page, panel: Panel, lines: Sequence[Line], box: Box, window: Window) -> None:
    left, bottom, width, height = box
    page.write((left + 10, bottom + height - 18), panel.title, size=9.5, weight="bold")
    if not lines:
        _no_data(page, panel, box)
        return
    legend = _legend(page, lines, box)
    defaults = panel.field_config.defaults
    below = _AXIS_HEIGHT + legend
    inner = (
        left + _AXIS_WIDTH,
        bottom + below,
        width - _AXIS_WIDTH - 14,
        height - below - _TITLE_HEIGHT - 4,
    )
    axes = page.axes(inner)
    axes.grid(axis="both", color="#eceef0", linewidth=0.8)
    axes.set_axisbelow(True)
    _time_axis(axes, window)
    if defaults.custom.stacking.get("mode") == "normal":
        _stacked(page, axes, lines)
    else:
        for line in lines:
            axes.plot(line.times, line.values, color=page.colours[line.name], linewidth=1.3)
    _scale(axes, panel, lines)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_unit(value, defaults.unit)))
    for step in defaults.thresholds.steps:
        if step.value is not None:
            axes.axhline(
                step.value, color=_STATES[step.color], linewidth=1.1, linestyle=(0, (5, 4))
            )
    if defaults.custom.axis_label:
        axes.set_ylabel(defaults.custom.axis_label, color=_FAINT)


def _scale(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    values = [value for line in lines for value in line.values if not math.isnan(value)]
    if panel.field_config.defaults.custom.scale_distribution.type == "log":
        positive = [value for value in values if value > 0]
        axes.set_yscale("log")
        axes.set_ylim(min(positive) / 1.6, max(positive) * 1.6)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.minorticks_off()
    else:
        axes.set_ylim(0, (max(values) or 1) * 1.12)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if step := _step_of_axis(panel.field_config.defaults.unit, max(values)):
            axes.yaxis.set_major_locator(MultipleLocator(step))


def _step_of_axis(unit: str, largest: float) -> float:
    """Return a round step for bytes and for minutes, 0 where a decimal one is round."""
    if unit == "bytes":
        return 2.0 ** math.ceil(math.log2(largest / _STEPS_OF_AXIS))
    if unit == "s" and largest >= _SECONDS_STEPS[0]:
        return next((step for step in _SECONDS_STEPS if largest / step <= _STEPS_OF_AXIS), 0)
    return 0


def _stacked(page: _Page, axes: Axes, lines: Sequence[Line]) -> None:
    below: dict[float, float] = {}
    for line in lines:
        pairs = [(t, v) for t, v in zip(line.times, line.values, strict=True) if not math.isnan(v)]
        base = [below.get(time, 0.0) for time, _ in pairs]
        top = [low + value for low, (_, value) in zip(base, pairs, strict=True)]
        times = [time for time, _ in pairs]
        axes.fill_between(times, base, top, color=page.colours[line.name], alpha=0.45, lw=0)
        axes.plot(times, top, color=page.colours[line.name], linewidth=1.1)
        below |= dict(zip(times, top, strict=True))


def _legend(page: _Page, lines: Sequence[Line], box: Box) -> float:
    """Write the legend in rows from the lower edge, and return its height."""
    left, bottom, width, _ = box
    rows: list[list[str]] = [[]]
    used = 0.0
    for line in lines:
        needed = 24 + 6.1 * len(line.name)
        if used + needed > width - 16 and rows[-1]:
            rows.append([])
            used = 0.0
        rows[-1].append(line.name)
        used += needed
    for height, row in enumerate(reversed(rows)):
        at, upper = left + 12, bottom + 5 + height * _LEGEND_ROW
        for name in row:
            page.rectangle((at, upper + 3, 12, 3), page.colours[name], page.colours[name])
            page.write((at + 17, upper), name, size=7.5, color=_TEXT)
            at += 24 + 6.1 * len(name)
    return len(rows) * _LEGEND_ROW + 4


def _no_data(page: _Page, panel: Panel, box: Box) -> None:
    left, bottom, width, height = box
    text = panel.field_config.defaults.no_value or "No data"
    page.write((left + width / 2, bottom + height / 2), text, size=11, ha="center", color=_FAINT)


def _time_axis(axes: Axes, window: Window) -> None:
    axes.set_xlim(window.start, window.end)
    narrow = axes.get_position().width < _NARROW
    most = 5 if narrow else 10
    minutes = next(each for each in _TICKS if (window.end - window.start) / 60 / each <= most)
    axes.xaxis.set_major_locator(MultipleLocator(minutes * 60))
    axes.xaxis.set_major_formatter(FuncFormatter(_clock))


def _clock(seconds: float, _: int | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M}"


def palette(picture: bytes) -> bytes:
    """Return a PNG with a palette of its own, which makes it several times smaller."""
    small = io.BytesIO()
    colours = Image.open(io.BytesIO(picture)).convert("RGB")
    colours.quantize(_PALETTE, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
