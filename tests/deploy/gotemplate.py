"""The part of Go's text/template, and of Helm's functions, that the chart keeps to.

Whatever is beyond it is an error here, so that the chart cannot come to use what no test renders.
Facts: text/template's documentation, and Helm's list of template functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\|(?!\|)|[^\s|]+')


class TemplateError(Exception):
    """A template uses what is not supported, or says itself that a value is missing."""


class Token(NamedTuple):
    text: str
    is_action: bool


class Files:
    """The chart's files, as `.Files` has them."""

    def __init__(self, chart: Path) -> None:
        self._chart = chart

    def get(self, name: str) -> str:
        return (self._chart / name).read_text()


def render(template: str, root: Mapping[str, Any]) -> str:
    """Execute a template. Raises TemplateError."""
    tokens = _tokens(template)
    text, rest = _block(tokens, root, root, live=True)
    if rest:
        raise TemplateError(f"{rest[0].text!r} without its beginning")
    return text


def _tokens(template: str) -> list[Token]:
    found: list[Token] = []
    at, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        found.append(Token(text.rstrip() if match[1] else text, is_action=False))
        found.append(Token(match[2].strip(), is_action=True))
        at, trim = match.end(), bool(match[3])
    tail = template[at:]
    return [*found, Token(tail.lstrip() if trim else tail, is_action=False)]


def _block(
    tokens: list[Token], dot: Any, root: Mapping[str, Any], *, live: bool
) -> tuple[str, list[Token]]:
    """Render up to the `end` that closes the block, which is left in place."""
    result = ""
    while tokens:
        token, *tokens = tokens
        word = token.text.partition(" ")[0]
        if not token.is_action:
            result += token.text if live else ""
        elif word == "end":
            return result, [token, *tokens]
        elif word in {"if", "with"}:
            value = _pipeline(token.text.removeprefix(word), dot) if live else None
            inner = value if word == "with" else dot
            text, tokens = _block(tokens, inner, root, live=live and bool(value))
            if not tokens:
                raise TemplateError(f"{token.text!r} has no end")
            result += text
            tokens = tokens[1:]
        elif live:
            result += _text(_pipeline(token.text, dot))
    return result, []


def _pipeline(text: str, dot: Any) -> Any:
    piped: list[Any] = []
    commands: list[list[str]] = [[]]
    for word in _WORD.findall(text):
        if word == "|":
            commands.append([])
        else:
            commands[-1].append(word)
    for first, *rest in commands:
        values = [_operand(word, dot) for word in rest]
        if first == ".Files.Get":
            piped = [dot["Files"].get(*values)]
        elif first in FUNCTIONS:
            piped = [FUNCTIONS[first](*values, *piped)]
        elif values or piped:
            raise TemplateError(f"{first}: no such function here")
        else:
            piped = [_operand(first, dot)]
    return piped[0]


def _operand(word: str, dot: Any) -> Any:
    if word.startswith('"') or word.isdigit():
        return json.loads(word)
    if not re.fullmatch(r"\.|(\.\w+)+", word):
        raise TemplateError(f"{word!r} is not supported here")
    for name in filter(None, word.split(".")):
        if name not in dot:
            raise TemplateError(f"{word}: there is no {name}")
        dot = dot[name]
    return dot


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _default(fallback: Any, value: Any) -> Any:
    return value or fallback


def _join(separator: str, values: list[str]) -> str:
    return separator.join(map(_text, values))


def _nindent(width: int, text: str) -> str:
    pad = " " * width
    return "\n" + pad + text.replace("\n", "\n" + pad)


def _required(message: str, value: Any) -> Any:
    if value is None or value == "":
        raise TemplateError(message)
    return value


def _to_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=False).removesuffix("\n").removesuffix("\n...")


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "default": _default,
    "join": _join,
    "nindent": _nindent,
    "required": _required,
    "toYaml": _to_yaml,
}
