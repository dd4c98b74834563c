"""Which fields a kind has, and of which types, as models.json lists them.

A real server drops fields that it does not know, or refuses them when the client asks for strict
checks (`kubectl apply` does), and refuses a value of the wrong type. `make generate` takes the
lists from the Kubernetes client, which takes longer to import than all of the lab.
"""

from __future__ import annotations

import enum
import functools
import re
from pathlib import Path
from typing import Any

import msgspec

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.objects import Object

_MODELS = Path(__file__).with_name("models.json")


class JsonType(enum.Enum):
    """The values that a field may hold."""

    STRUCT = "object"
    MAP = "map"
    LIST = "array"
    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    ANY = "any"


class Shape(msgspec.Struct):
    """The type of a field; `fields` are a struct's, `items` a list's or a map's values."""

    type: JsonType
    model: str = ""
    fields: dict[str, Shape] = {}
    items: Shape | None = None


_PLAIN = {
    "str": JsonType.STRING,
    "bytes": JsonType.STRING,  # base64
    "datetime": JsonType.STRING,
    "int": JsonType.INTEGER,
    "float": JsonType.NUMBER,
    "bool": JsonType.BOOLEAN,
    "object": JsonType.ANY,
}
_PYTHON: dict[JsonType, tuple[type[Any], ...]] = {
    JsonType.STRUCT: (dict,),
    JsonType.MAP: (dict,),
    JsonType.LIST: (list,),
    JsonType.STRING: (str,),
    JsonType.INTEGER: (int,),
    JsonType.NUMBER: (int, float),
    JsonType.BOOLEAN: (bool,),
}
_INT_OR_STRING = {("V1ServicePort", "targetPort")}


@functools.cache
def shape_of(model: str) -> Shape:
    """Return the shape of a model of the Kubernetes client, such as `V1Service`."""
    fields = _models()[model]
    return Shape(JsonType.STRUCT, model, {name: _shape(text) for name, text in fields.items()})


@functools.cache
def _models() -> dict[str, dict[str, str]]:
    return msgspec.json.decode(_MODELS.read_bytes(), type=_Models).models


class _Models(msgspec.Struct):
    models: dict[str, dict[str, str]]


def _shape(text: str) -> Shape:
    if found := re.fullmatch(r"[Ll]ist\[(.*)\]", text):
        return Shape(JsonType.LIST, items=_shape(found[1]))
    if found := re.fullmatch(r"[Dd]ict[\[(]str, (.*)[\])]", text):
        return Shape(JsonType.MAP, items=_shape(found[1]))
    return Shape(_PLAIN[text]) if text in _PLAIN else shape_of(text)


def checked(obj: Object, model: str, kind: str, unknown: list[str]) -> Object:
    """Return an object with the fields that its kind has.

    Fields that it has not are dropped and their paths added to `unknown`. Nulls and empty lists
    and maps are dropped too, as a real server's encoding does. Raises ApiError (400) for a value
    of the wrong type.
    """
    try:
        result: Object = _checked(obj, shape_of(model), "", unknown)
    except _WrongTypeError as error:
        raise status.bad_request(
            f'{kind} in version "v1" cannot be handled as a {kind}: json: cannot unmarshal '
            f"{error.found} into Go struct field {kind}.{error.field} of type {error.wanted}"
        ) from error
    return result


class _WrongTypeError(Exception):
    def __init__(self, field: str, found: object, wanted: JsonType) -> None:
        super().__init__(field)
        self.field = field
        self.found = _json_type(found)
        self.wanted = {JsonType.STRUCT: "map", JsonType.LIST: "slice"}.get(wanted, wanted.value)


def _checked(value: Any, shape: Shape, field: str, unknown: list[str]) -> Any:
    wanted = shape.type
    if wanted is JsonType.ANY:
        return value
    fits = isinstance(value, _PYTHON[wanted])
    if not fits or (value is True or value is False) is not (wanted is JsonType.BOOLEAN):
        raise _WrongTypeError(field, value, wanted)
    if wanted is JsonType.STRUCT:
        return _checked_struct(value, shape, field, unknown)
    if shape.items is None:
        return value
    if wanted is JsonType.LIST:
        return [
            _checked(item, shape.items, f"{field}[{index}]", unknown)
            for index, item in enumerate(value)
        ]
    return {
        key: _checked("" if item is None else item, shape.items, f"{field}.{key}", unknown)
        for key, item in value.items()
    }


def _checked_struct(value: Object, shape: Shape, field: str, unknown: list[str]) -> Object:
    result: Object = {}
    for name, item in value.items():
        path = f"{field}.{name}" if field else name
        inner = shape.fields.get(name)
        if inner is None:
            unknown.append(path)
        elif item is not None and not (
            item in ([], {}) and inner.type in {JsonType.LIST, JsonType.MAP}
        ):
            if (shape.model, name) in _INT_OR_STRING and not isinstance(item, int | str):
                raise _WrongTypeError(path, item, JsonType.STRING)
            result[name] = _checked(item, inner, path, unknown)
    return result


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "bool"}
    return names.get(type(value), "number")
