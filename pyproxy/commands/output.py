"""The parts of a command's output: texts and tables, without a layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

GOOD, BAD, DIM, HEAD = "green", "red", "dim", "bold"
"""Styles, by rich's names."""


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


def _cell(value: Cell) -> Text:
    return value if isinstance(value, Text) else text(value)
