"""The names in a PromQL expression.

promtool says whether an expression is one, but not what it asks for, so the metrics' names are what
is left once strings, braces, ranges, label lists, functions and words are gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS = re.compile(
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", re.IGNORECASE
)
_BRACES = re.compile(r"\{[^}]*\}")
_RANGE = re.compile(r"\[[^\]]*\]")
_OFFSET = re.compile(r"\boffset\s+\S+")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()(?![a-zA-Z0-9_:])")
_WORDS = {"and", "or", "unless", "bool", "inf", "nan", "offset"}
_LABEL_NAME = re.compile(r"\b([a-z_]\w*)\s*(?:=|!=|=~|!~)\s*\"")


def metrics(expression: str) -> set[str]:
    """Name the metrics that an expression asks for."""
    text = _STRING.sub("", expression)
    for gone in (_LABELS, _BRACES, _RANGE, _OFFSET):
        text = gone.sub(" ", text)
    names = (match[0] for match in _NAME.finditer(text) if not _within_number(text, match.start()))
    return {name for name in names if name.lower() not in _WORDS}


def labels(expression: str) -> Iterator[str]:
    """Name the labels that it matches or groups by."""
    for braces in _BRACES.findall(expression):
        yield from _LABEL_NAME.findall(braces)
    for grouped in _LABELS.findall(_STRING.sub("", expression)):
        yield from re.findall(r"[a-z_]\w*", grouped.partition("(")[2])


def _within_number(text: str, at: int) -> bool:
    return at > 0 and text[at - 1].isdigit()
