"""The panels of a Grafana dashboard, as far as the pictures show them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec


class Grid(msgspec.Struct, frozen=True):
    """A place in the dashboard's 24 columns; `y` counts units of 38 pixels from the top."""

    x: int
    y: int
    w: int
    h: int


class Step(msgspec.Struct, frozen=True):
    """The colour of values from `value` on, None for all values."""

    color: str
    value: float | None


class Thresholds(msgspec.Struct, frozen=True):
    """The steps, in ascending order."""

    steps: list[Step] = []


class Scale(msgspec.Struct, frozen=True):
    """The scale of an axis: linear or log."""

    type: str = "linear"


class Custom(msgspec.Struct, frozen=True, rename="camel"):
    """How a graph is drawn."""

    axis_label: str = ""
    scale_distribution: Scale = Scale()
    stacking: dict[str, str] = {}


class Defaults(msgspec.Struct, frozen=True, rename="camel"):
    """The unit, the thresholds and the style of all values of a panel.

    `no_value` is shown in place of no data, and says that a healthy node has none.
    """

    unit: str = "short"
    no_value: str = ""
    thresholds: Thresholds = Thresholds()
    custom: Custom = Custom()


class FieldConfig(msgspec.Struct, frozen=True):
    """The settings of a panel's values; overrides are not drawn, and the dashboard has none."""

    defaults: Defaults = Defaults()


class Target(msgspec.Struct, frozen=True, rename="camel"):
    """A query, and the text of its series in the legend."""

    expr: str
    legend_format: str


class Panel(msgspec.Struct, frozen=True, rename="camel"):
    """A panel: a row's title, a stat, a timeseries or a state-timeline."""

    type: str
    title: str
    grid_pos: Grid
    description: str = ""
    targets: list[Target] = []
    field_config: FieldConfig = FieldConfig()

    @property
    def slug(self) -> str:
        """The first words of the title, up to a colon, as the name of a file."""
        words = re.findall(r"[a-z0-9]+", self.title.lower().partition(":")[0])
        return "-".join(words)

    @property
    def may_be_empty(self) -> bool:
        """Whether a healthy cluster has no data for this panel."""
        return bool(self.field_config.defaults.no_value)


class Dashboard(msgspec.Struct, frozen=True):
    """The panels in the order of the file: a row is before its panels."""

    panels: list[Panel]

    def rows(self) -> Iterator[tuple[Panel, list[Panel]]]:
        """Yield each row with its panels."""
        starts = [n for n, panel in enumerate(self.panels) if panel.type == "row"]
        for start, end in zip(starts, [*starts[1:], len(self.panels)], strict=True):
            yield self.panels[start], self.panels[start + 1 : end]


def load(path: Path) -> Dashboard:
    """Read a dashboard. Raises msgspec.ValidationError for one with other panels than these."""
    return msgspec.json.decode(path.read_bytes(), type=Dashboard)


def expanded(expression: str, instances: str = ".*", rate_interval: str = "1m") -> str:
    """Put values in place of Grafana's variables.

    Grafana takes four scrapes of 15 seconds as the interval of rates.
    """
    return expression.replace("$__rate_interval", rate_interval).replace("$instance", instances)
