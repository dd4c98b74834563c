"""The plot: times of each agent beside each other, on a logarithmic scale."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from pyproxy_lab.bench.measures import Measure, Unit
from pyproxy_lab.bench.report import Report, written

_COLOURS = ("#2a6f97", "#e07a3f", "#6a994e", "#8d5a97")
_BAR = 0.8
_PANELS = {Unit.SECONDS: "seconds, logarithmic", Unit.BYTES: "MiB"}
_SCALE = {Unit.SECONDS: 1.0, Unit.BYTES: 1 / (1 << 20)}
_BESIDE = {Measure.DIRECT, Measure.CHURN_GROWTH}


def draw(report: Report, path: Path) -> None:
    """Draw medians, with lines from the least to the most; the suffix selects SVG or PNG."""
    # The same figures are the same file, and words are text that can be searched for.
    mpl.rcParams.update({"svg.hashsalt": "pyproxy", "svg.fonttype": "none"})
    panels = {unit: _measures(report, unit) for unit in _PANELS}
    panels = {unit: found for unit, found in panels.items() if found}
    rows = [len(found) for found in panels.values()]
    names = list(report.agents)
    figure = Figure(figsize=(9, 1.2 + sum(rows) * (0.2 + 0.16 * len(names))), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=rows)[:, 0]
    for panel, (unit, measures) in zip(axes, panels.items(), strict=True):
        _draw_panel(panel, report, unit, measures)
    axes[0].set_title(f"{report.shape}\n{report.machine}", fontsize=9, loc="left")
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names), frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _measures(report: Report, unit: Unit) -> list[Measure]:
    return [
        measure
        for measure in Measure
        if measure.unit is unit
        and measure not in _BESIDE
        and any(value > 0 for name in report.agents for value in report.values(name, measure))
    ]


def _draw_panel(panel: mpl.axes.Axes, report: Report, unit: Unit, measures: list[Measure]) -> None:
    height = _BAR / len(report.agents)
    for index, name in enumerate(report.agents):
        for place, measure in enumerate(measures):
            values = [value * _SCALE[unit] for value in report.values(name, measure)]
            if not values or min(values) <= 0:
                continue
            at = place + (index - (len(report.agents) - 1) / 2) * height
            median = statistics.median(values)
            label = name if place == 0 else None
            panel.barh(at, median, height * 0.9, color=_COLOURS[index % 4], label=label)
            panel.plot([min(values), max(values)], [at, at], color="black", linewidth=0.8)
            text = f"  {written(median / _SCALE[unit], unit)}"
            panel.text(max(values), at, text, va="center", fontsize=7)
    if unit is Unit.SECONDS:
        panel.set_xscale("log")
    panel.margins(x=0.15, y=0.02)
    panel.set_yticks(range(len(measures)), [measure.words for measure in measures], fontsize=8)
    panel.invert_yaxis()
    panel.tick_params(axis="x", labelsize=7)
    panel.set_xlabel(_PANELS[unit], fontsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
