"""What answers consist of: texts and tables as values, whoever draws them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

GOOD, BAD, DIM, HEAD = "green", "red", "dim", "bold"
"""Styles, by the names that rich has for them."""


class Text(msgspec.Struct, frozen=True):
    """One line in one style, in which nothing steers a terminal; `text` makes them so."""

    plain: str
    style: str = ""


class Line(msgspec.Struct, frozen=True):
    """Texts of several styles, one behind the other."""

    texts: tuple[Text, ...]

    @property
    def plain(self) -> str:
        """All of it without styles."""
        return "".join(each.plain for each in self.texts)


class Table(msgspec.Struct, frozen=True):
    """Rows of as many cells as there are columns; no titles stand above facts."""

    titles: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]


Part = Text | Line | Table
Cell = str | Text


def text(value: object, style: str = "") -> Text:
    """Make a text of anything."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return Text(clean, style)


def table(titles: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Make a table without lines; a script can count on its columns."""
    return Table(
        tuple(text(title).plain for title in titles), tuple(tuple(map(_cell, row)) for row in rows)
    )


def facts(pairs: Iterable[tuple[str, Cell]]) -> Table:
    """Make a list of names and values."""
    return Table((), tuple((text(name, HEAD), _cell(value)) for name, value in pairs))


def _cell(value: Cell) -> Text:
    return value if isinstance(value, Text) else text(value)
