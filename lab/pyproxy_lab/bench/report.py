"""The results of all runs: JSON for programs, a table in Markdown for people."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pyproxy_lab.bench.figures import duration, mebibytes
from pyproxy_lab.bench.measures import Measure, Run, Unit


class Report(msgspec.Struct, frozen=True):
    """All runs, on which machine, of which cluster; agents in the order they were named."""

    shape: str
    machine: str
    agents: Mapping[str, Sequence[str]]
    runs: Sequence[Run]

    def values(self, agent: str, measure: Measure) -> list[float]:
        """Return a measure's figures of all runs of an agent, empty where it has none."""
        found = (run.figures.get(measure, ()) for run in self.runs if run.agent == agent)
        return [value for values in found for value in values]

    def ratio(self, agent: str, measure: Measure) -> float | None:
        """Return how many times the first agent's figure this one's is, by the pairs of runs."""
        first = next(iter(self.agents))
        mine, its = self._medians(agent, measure), self._medians(first, measure)
        pairs = [mine[number] / its[number] for number in mine if its.get(number, 0) > 0]
        return statistics.median(pairs) if pairs and agent != first else None

    def _medians(self, agent: str, measure: Measure) -> dict[int, float]:
        return {
            run.number: statistics.median(run.figures[measure])
            for run in self.runs
            if run.agent == agent and run.figures.get(measure)
        }


def machine() -> str:
    """Return a description of the machine."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"{os.cpu_count()} CPUs, {pages >> 30} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def as_json(report: Report) -> bytes:
    """Write everything, each single figure in its unit."""
    document = {
        "shape": report.shape,
        "machine": report.machine,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "agents": {name: list(command) for name, command in report.agents.items()},
        "measures": {
            measure.key: {
                "what": measure.words,
                "unit": measure.unit.value,
                "agents": {
                    name: _of_agent(report, name, measure)
                    for name in report.agents
                    if report.values(name, measure)
                },
            }
            for measure in Measure
        },
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1)


def _of_agent(report: Report, name: str, measure: Measure) -> dict[str, object]:
    values = report.values(name, measure)
    found: dict[str, object] = {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "values": values,
    }
    ratio = report.ratio(name, measure)
    return found if ratio is None else {**found, "ratio": ratio}


def as_markdown(report: Report) -> str:
    """Write the table: medians, from the least to the most, and ratios to the first agent."""
    names = list(report.agents)
    heads = [names[0], *(part for name in names[1:] for part in (name, f"÷ {names[0]}"))]
    lines = [
        f"{report.shape}; {report.machine}",
        "",
        f"| | {' | '.join(heads)} |",
        f"| --- |{' --- |' * len(heads)}",
    ]
    for measure in Measure:
        if not any(report.values(name, measure) for name in names):
            continue
        cells = []
        for name in names:
            cells.append(_cell(report.values(name, measure), measure.unit))
            if name != names[0]:
                ratio = report.ratio(name, measure)
                cells.append(f"{ratio:.1f}" if ratio is not None else "")
        lines.append(f"| {measure.words} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], unit: Unit) -> str:
    if not values:
        return "-"
    middle = written(statistics.median(values), unit)
    if len(values) == 1:
        return middle
    return f"{middle} ({written(min(values), unit)} to {written(max(values), unit)})"


def written(value: float, unit: Unit) -> str:
    """Write one figure."""
    match unit:
        case Unit.SECONDS:
            return duration(value)
        case Unit.BYTES:
            return mebibytes(value)
        case Unit.RATE:
            return f"{value:,.0f} a second"
        case Unit.COUNT:
            return f"{value:,.0f}"


def write(report: Report, folder: Path) -> list[Path]:
    """Write `bench.json` and `bench.md`, and give their paths."""
    paths = [folder / "bench.json", folder / "bench.md"]
    paths[0].write_bytes(as_json(report) + b"\n")
    paths[1].write_text(as_markdown(report))
    return paths
