"""Output as texts and tables: plain in a pipe, in colour on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import msgspec

GOOD, BAD, DIM, HEAD = "green", "red", "dim", "bold"
"""Styles, by rich's names."""

_GAP = "   "


class Text(msgspec.Struct, frozen=True):
    """One line in one style, without control characters: use `text` to make it."""

    plain: str
    style: str = ""


class StyledLine(msgspec.Struct, frozen=True):
    """One line of texts in several styles."""

    texts: tuple[Text, ...]

    @property
    def plain(self) -> str:
        """The line without styles."""
        return "".join(each.plain for each in self.texts)


class Table(msgspec.Struct, frozen=True):
    """Rows with a cell for each column; `titles` is empty for a table without a header."""

    titles: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]


Part = Text | StyledLine | Table
Cell = str | Text


def text(value: object, style: str = "") -> Text:
    """Return a value as text, with control characters replaced.

    Names and messages come from the cluster and must not send escape sequences to a terminal.
    """
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return Text(clean, style)


def table(titles: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Return a table with a header."""
    return Table(
        tuple(text(title).plain for title in titles), tuple(tuple(map(_cell, row)) for row in rows)
    )


def properties(pairs: Iterable[tuple[str, Cell]]) -> Table:
    """Return a table of names and values, without a header."""
    return Table((), tuple((text(name, HEAD), _cell(value)) for name, value in pairs))


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


def _cell(value: Cell) -> Text:
    return value if isinstance(value, Text) else text(value)


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
