"""How answers look: tables in colour on a terminal, the same columns without it in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 100_000
"""Columns of what is no terminal: nothing is cut or wrapped there."""

Cell = str | Text

GOOD, BAD, DIM, HEAD = "green", "red", "dim", "bold"


def console(file: TextIO) -> Console:
    """Make a console: without colours where the file is no terminal, or NO_COLOR is set."""
    if file.isatty():
        return Console(file=file, highlight=False, emoji=False)
    return Console(
        file=file,
        highlight=False,
        emoji=False,
        width=_PIPE_WIDTH,
        color_system=None,
        soft_wrap=True,
    )


def show(to: Console, parts: Iterable[RenderableType]) -> None:
    """Print what a view consists of."""
    if to.is_terminal:
        for part in parts:
            to.print(part)
        return
    with to.capture() as capture:
        for part in parts:
            to.print(part)
    # Columns are padded to their width, which is of no use after the last one.
    for line in capture.get().splitlines():
        to.file.write(f"{line.rstrip()}\n")
    to.file.flush()


def text(value: object, style: str = "") -> Text:
    """Make a text of anything, in which nothing steers a terminal."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return Text(clean, style=style)


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Make a table without lines; a script can count on its columns."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style=HEAD)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else text(cell) for cell in row))
    return made


def facts(pairs: Iterable[tuple[str, Cell]]) -> Table:
    """Make a list of names and values."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    made.add_column(style=HEAD)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, value if isinstance(value, Text) else text(value))
    return made


def duration(seconds: float) -> str:
    """Write a duration as a person would say it: `3.2 ms`, `4 s`, `2 h 5 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def clock(seconds: float) -> str:
    """Write a time since the epoch as RFC 3339 has it, in UTC."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def count(number: int, one: str, many: str = "") -> str:
    """Write a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
