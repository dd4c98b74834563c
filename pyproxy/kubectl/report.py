"""Print a report as tables, JSON or YAML, and name groups of nodes."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence

import msgspec

from pyproxy.commands import printer
from pyproxy.commands.arguments import encoder
from pyproxy.commands.output import Part
from pyproxy.inspect.humanize import count, listed

_NAMED = 3
"""Nodes of a group whose names are printed."""

_DURATION = re.compile(r"\b\d+(?:\.\d+)? (?=(?:ms|s|min|h)\b)")


def show(
    report: msgspec.Struct, parts: Callable[[], Iterable[Part]], namespace: argparse.Namespace
) -> None:
    """Print a report in the format of `-o`; `parts` are those of its tables."""
    encode = encoder(namespace)
    if encode is None:
        printer.show(sys.stdout, parts())
        return
    print(escaped(encode(report)), flush=True)


def escaped(document: str) -> str:
    """Escape what a terminal might act on in JSON or YAML, in which it is part of a string.

    The encoders leave C1 control characters and marks that reorder text as they are.
    """
    if document.isprintable():
        return document
    return "".join(
        each if each.isprintable() or each == "\n" else _escape(each) for each in document
    )


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def nodes_text(nodes: Sequence[str], total: int) -> str:
    """Return a group of nodes in words: names of a few, else their number."""
    if len(nodes) == total and total > 1:
        return f"all {total:,} nodes"
    if len(nodes) <= _NAMED:
        return ", ".join(nodes)
    return f"{count(len(nodes), 'node')}"


def named(nodes: Sequence[str]) -> str:
    """Return the names of the first nodes, and the number of the others."""
    return listed(nodes, _NAMED)


def without_node(text: str, node: str) -> str:
    """Return a text of one node's answer in which other nodes' answers are equal.

    The node's own name becomes NODE, and durations lose their numbers.
    """
    own = re.compile(rf"(?<![\w.-]){re.escape(node)}(?![\w-]|\.\w)")
    return _DURATION.sub("N ", own.sub("NODE", text))
