"""Label and field selectors, in the whole syntax of the API."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.names import label_value_problem, qualified_name_problem
from pyproxy_lab.apiserver.store import Stored


class Operator(enum.Enum):
    """How a requirement compares a label's value."""

    EXISTS = "exists"
    MISSING = "!"
    IN = "in"
    NOT_IN = "notin"
    GREATER = ">"
    LESS = "<"


_EXPRESSIONS = {
    "In": Operator.IN,
    "NotIn": Operator.NOT_IN,
    "Exists": Operator.EXISTS,
    "DoesNotExist": Operator.MISSING,
}


class Requirement(msgspec.Struct, frozen=True):
    """One requirement of a label selector."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels satisfy it."""
        value = labels.get(self.key)
        match self.operator:
            case Operator.EXISTS:
                return value is not None
            case Operator.MISSING:
                return value is None
            case Operator.IN:
                return value in self.values
            case Operator.NOT_IN:
                return value not in self.values
        return value is not None and self._compares(value)

    def _compares(self, value: str) -> bool:
        (bound,) = self.values
        try:
            number, limit = int(value), int(bound)
        except ValueError:
            return False
        return number > limit if self.operator is Operator.GREATER else number < limit


class FieldRequirement(msgspec.Struct, frozen=True):
    """One requirement of a field selector."""

    field: str
    value: str
    equal: bool = True


class Selector(msgspec.Struct, frozen=True):
    """A label selector and a field selector, both of which must match."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[FieldRequirement, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether it matches all objects."""
        return not self.labels and not self.fields

    def matches(self, stored: Stored) -> bool:
        """Return whether an object is selected."""
        return all(r.matches(stored.labels) for r in self.labels) and all(
            (_field(stored, r.field) == r.value) is r.equal for r in self.fields
        )


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Read a label selector such as `app=web,tier in (a, b),!old`. Raises ApiError (400)."""
    parser = _Parser(text)
    return tuple(parser.requirements())


def parse_fields(text: str, known: frozenset[str]) -> tuple[FieldRequirement, ...]:
    """Read a field selector such as `metadata.name=web,spec.nodeName!=`. Raises ApiError (400)."""
    found = []
    for part in filter(None, re.split(r"(?<!\\),", text)):
        match = re.fullmatch(r"(.*?)(!=|==|=)(.*)", part, re.DOTALL)
        if match is None:
            raise status.bad_request(
                f"unable to parse field selector: invalid selector: '{text}'; can't understand "
                f"'{part}'"
            )
        name, operator, value = match.groups()
        if name not in known:
            raise status.bad_request(f"field label not supported: {name}")
        plain = re.sub(r"\\([\\,=])", r"\1", value)
        found.append(FieldRequirement(name, plain, operator != "!="))
    return tuple(found)


def label_selector_matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether labels satisfy a LabelSelector: matchLabels and matchExpressions.

    An unknown operator matches nothing.
    """
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for expression in selector.get("matchExpressions") or ():
        operator = _EXPRESSIONS.get(expression.get("operator", ""))
        if operator is None:
            return False
        values = frozenset(expression.get("values") or ())
        if not Requirement(expression.get("key", ""), operator, values).matches(labels):
            return False
    return True


def _field(stored: Stored, name: str) -> str:
    if name == "metadata.name":
        return stored.name
    if name == "metadata.namespace":
        return stored.namespace
    return stored.fields.get(name, "")


_TOKEN = re.compile(r"\s*(==|!=|[=!,()<>]|[^\s=!,()<>]+)")


class _Parser:
    """Reads a label selector token by token."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [m.group(1) for m in _TOKEN.finditer(text)]
        self._at = 0

    def requirements(self) -> list[Requirement]:
        found: list[Requirement] = []
        while self._peek():
            found.append(self._requirement())
            if self._peek():
                self._expect(",")
                if not self._peek():
                    raise self._bad("found '', expected: identifier after ','")
        return found

    def _requirement(self) -> Requirement:
        if self._peek() == "!":
            self._next()
            key = self._key()
            if self._peek() not in {"", ","}:
                raise self._bad(f"found '{self._peek()}', expected: , or end of string")
            return Requirement(key, Operator.MISSING)
        key = self._key()
        operator = self._peek()
        if operator in {"", ","}:
            return Requirement(key, Operator.EXISTS)
        self._next()
        match operator:
            case "=" | "==":
                return Requirement(key, Operator.IN, frozenset({self._value(key)}))
            case "!=":
                return Requirement(key, Operator.NOT_IN, frozenset({self._value(key)}))
            case "in" | "notin":
                return Requirement(key, Operator(operator), self._values(key))
            case "<" | ">":
                value = self._value(key)
                if not re.fullmatch(r"-?\d+", value):
                    raise self._bad("for 'Gt', 'Lt' operators, the value must be an integer")
                return Requirement(key, Operator(operator), frozenset({value}))
        raise self._bad(f"found '{operator}', expected: in, notin, =, ==, !=, gt, lt")

    def _key(self) -> str:
        key = self._next()
        if problem := qualified_name_problem(key):
            raise self._bad(f'key: Invalid value: "{key}": {problem}')
        return key

    def _value(self, key: str) -> str:
        value = "" if self._peek() in {"", ","} else self._next()
        return self._checked(key, value)

    def _values(self, key: str) -> frozenset[str]:
        self._expect("(")
        values = set()
        while True:
            value = "" if self._peek() in {",", ")"} else self._next()
            values.add(self._checked(key, value))
            if self._peek() != ",":
                break
            self._next()
        self._expect(")")
        return frozenset(values)

    def _checked(self, key: str, value: str) -> str:
        if problem := label_value_problem(value):
            raise self._bad(f'values[0][{key}]: Invalid value: "{value}": {problem}')
        return value

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if (found := self._next()) != token:
            raise self._bad(f"found '{found}', expected: '{token}'")

    def _bad(self, why: str) -> status.ApiError:
        return status.bad_request(f"unable to parse requirement: {why}")
