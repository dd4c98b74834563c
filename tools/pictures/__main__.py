"""`python -m tools.pictures record|draw`: see the package."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from tools.pictures import dashboard, prometheus
from tools.pictures.draw import draw_row, palette
from tools.pictures.prometheus import Prometheus
from tools.pictures.record import Recording, record
from tools.pictures.series import Window, read

FOLDER = Path("build/pictures")
PROGRAM = prometheus.Program(FOLDER / "prometheus")
DASHBOARD = Path("deploy/monitoring/dashboard.json")
PICTURES = Path("docs/img")
SHOWN_HEALTHY = {"now"}
"""Rows that are drawn a second time, before the first fault."""


def draw() -> int:
    """Draw all rows of the dashboard into docs/img, and return how many panels lack data."""
    times = msgspec.json.decode((FOLDER / "times.json").read_bytes(), type=Recording)
    lacking = 0
    with prometheus.running(PROGRAM, FOLDER / "data", FOLDER / "drawing.log") as server:
        for row, panels in dashboard.load(DASHBOARD).rows():
            lacking += _draw(server, row, panels, Window(times.start, times.end), "")
            if row.slug in SHOWN_HEALTHY:
                _draw(server, row, panels, Window(times.start, times.first_fault), "-healthy")
    for name in ("alerts", "alert"):
        _save(palette((FOLDER / f"{name}.png").read_bytes()), name)
    return lacking


def _draw(
    server: Prometheus,
    row: dashboard.Panel,
    panels: list[dashboard.Panel],
    window: Window,
    suffix: str,
) -> int:
    lines = [(panel, read(server, panel, window)) for panel in panels]
    _save(draw_row(row, lines, window), f"dashboard-{row.slug}{suffix}")
    lacking = [panel.title for panel, found in lines if not found and not panel.may_be_empty]
    for title in lacking:
        print(f"{title}: no query of this panel returns data, and it has no noValue")
    return len(lacking)


def _save(picture: bytes, name: str) -> None:
    path = PICTURES / f"{name}.png"
    path.write_bytes(picture)
    print(f"{path}: {len(picture) / 1000:.0f} kB")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", *length]:
            record(PROGRAM, FOLDER, float(length[0]) if length else 60.0)
        case ["draw"]:
            sys.exit(1 if draw() else 0)
        case _:
            sys.exit("usage: python -m tools.pictures record [SECONDS OF A MINUTE] | draw")
