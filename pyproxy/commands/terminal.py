"""Answers on a terminal: in colour, and folded where it is narrow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text as Drawn

from pyproxy.commands.parts import HEAD, Line, Part, Table, Text


def show(file: TextIO, parts: Iterable[Part], *, anew: bool = False) -> None:
    """Print a view; with `anew` on a terminal that is cleared before."""
    console = _console(file)
    if anew:
        console.clear()
    for part in parts:
        console.print(_drawn(part))


@contextmanager
def in_place(file: TextIO) -> Iterator[Callable[[Iterable[Part]], None]]:
    """Give what prints a view where the one before was."""
    with Live(console=_console(file), auto_refresh=False) as live:
        yield lambda parts: live.update(Group(*map(_drawn, parts)), refresh=True)


def _console(file: TextIO) -> Console:
    return Console(file=file, highlight=False, emoji=False)


def _drawn(part: Part) -> RenderableType:
    if isinstance(part, Text):
        return _text(part)
    if isinstance(part, Line):
        return Drawn.assemble(*map(_text, part.texts))
    return _grid(part)


def _text(text: Text) -> Drawn:
    return Drawn(text.plain, style=text.style)


def _grid(table: Table) -> Grid:
    grid = Grid(
        box=None,
        pad_edge=False,
        padding=(0, 3, 0, 0),
        header_style=HEAD,
        show_header=bool(table.titles),
    )
    columns = table.titles or ("",) * max(map(len, table.rows), default=0)
    for title in columns:
        grid.add_column(title, overflow="fold")
    for row in table.rows:
        grid.add_row(*map(_text, row))
    return grid
