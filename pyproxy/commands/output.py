"""How answers look: in colour on a terminal, and elsewhere the same columns as plain lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from pyproxy.commands.parts import Part, Table

_GAP = "   "


def show(file: TextIO, parts: Iterable[Part], *, anew: bool = False) -> None:
    """Print what a view consists of; with `anew` a terminal is cleared before."""
    if file.isatty():
        # Who reads from a pipe does not wait for what draws on terminals.
        from pyproxy.commands import terminal  # noqa: PLC0415

        terminal.show(file, parts, anew=anew)
        return
    for part in parts:
        for line in _lines(part):
            # Columns are padded to their width, which is of no use after the last one.
            file.write(f"{line.rstrip()}\n")
    file.flush()


@contextmanager
def in_place(file: TextIO) -> Iterator[Callable[[Iterable[Part]], None]]:
    """Give what prints a view: on a terminal where the one before was, elsewhere behind it."""
    if file.isatty():
        from pyproxy.commands import terminal  # noqa: PLC0415

        with terminal.in_place(file) as draw:
            yield draw
    else:
        yield lambda parts: show(file, parts)


def _lines(part: Part) -> Iterator[str]:
    if not isinstance(part, Table):
        yield part.plain
        return
    rows = [*((part.titles,) if part.titles else ()), *_plain(part)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))


def _plain(table: Table) -> Iterator[tuple[str, ...]]:
    for row in table.rows:
        yield tuple(cell.plain for cell in row)
