"""Printing the parts of a command's output: plain in a pipe, with rich on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from pyproxy.commands.output import Part, Table

_GAP = "   "


def show(file: TextIO, parts: Iterable[Part], *, clear: bool = False) -> None:
    """Print parts; `clear` clears a terminal first."""
    if file.isatty():
        # rich takes about 100 ms to import, which a pipe does without.
        from pyproxy.commands import terminal  # noqa: PLC0415

        terminal.show(file, parts, clear=clear)
        return
    for part in parts:
        for line in _lines(part):
            file.write(f"{line.rstrip()}\n")
    file.flush()


@contextmanager
def refreshing(file: TextIO) -> Iterator[Callable[[Iterable[Part]], None]]:
    """Yield a function that prints parts: on a terminal over the previous ones, else after them."""
    if file.isatty():
        from pyproxy.commands import terminal  # noqa: PLC0415

        with terminal.refreshing(file) as draw:
            yield draw
    else:
        yield lambda parts: show(file, parts)


def _lines(part: Part) -> Iterator[str]:
    if not isinstance(part, Table):
        yield part.plain
        return
    rows = [*((part.titles,) if part.titles else ()), *_plain_rows(part)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))


def _plain_rows(table: Table) -> Iterator[tuple[str, ...]]:
    for row in table.rows:
        yield tuple(cell.plain for cell in row)
