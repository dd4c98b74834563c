"""Output on a terminal with rich: in colour, folded to its width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich import table, text
from rich.console import Console, Group, RenderableType
from rich.live import Live

from pyproxy.commands.output import HEAD, Part, StyledLine, Table, Text


def show(file: TextIO, parts: Iterable[Part], *, clear: bool = False) -> None:
    """Print parts; `clear` clears the terminal first."""
    console = _console(file)
    if clear:
        console.clear()
    for part in parts:
        console.print(_rendered(part))


@contextmanager
def refreshing(file: TextIO) -> Iterator[Callable[[Iterable[Part]], None]]:
    """Yield a function that prints parts over the previous ones."""
    with Live(console=_console(file), auto_refresh=False) as live:
        yield lambda parts: live.update(Group(*map(_rendered, parts)), refresh=True)


def _console(file: TextIO) -> Console:
    return Console(file=file, highlight=False, emoji=False)


def _rendered(part: Part) -> RenderableType:
    if isinstance(part, Text):
        return _text(part)
    if isinstance(part, StyledLine):
        return text.Text.assemble(*map(_text, part.texts))
    return _table(part)


def _text(part: Text) -> text.Text:
    # Not a str, in which rich would read brackets as markup, such as those of [fd00::1]:80.
    return text.Text(part.plain, style=part.style)


def _table(part: Table) -> table.Table:
    grid = table.Table(
        box=None,
        pad_edge=False,
        padding=(0, 3, 0, 0),
        header_style=HEAD,
        show_header=bool(part.titles),
    )
    columns = part.titles or ("",) * max(map(len, part.rows), default=0)
    for title in columns:
        grid.add_column(title, overflow="fold")
    for row in part.rows:
        grid.add_row(*map(_text, row))
    return grid
