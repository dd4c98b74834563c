"""Split a file of manifests into objects, in YAML or JSON, with bounds on what it expands to.

A syntax error concerns the whole file. Any value that no API object has (a lone surrogate, a number
out of range) concerns its object alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from pyproxy.source.files import read_file

LARGEST_FILE = 64 << 20
"""Bytes of a file; 10,000 Services with their EndpointSlices have about 20 MB."""

MOST_VALUES = 10_000_000
"""Values that a file may have after its YAML aliases are expanded."""

UNREADABLE = (OSError, yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError)
"""All errors of `objects`."""

_LONGEST_INTEGER = 4000
"""Digits; Python refuses to convert more than 4300."""


def objects(path: Path) -> Iterator[object]:
    """Yield the objects of a file, and the items of its Lists one by one.

    An item should be a mapping, but may be any value. Raises one of UNREADABLE.
    """
    data = read_file(path, LARGEST_FILE)
    loaded = [_json(data)] if path.suffix == ".json" else list(_yaml(data))
    for i, document in enumerate(loaded):
        if document is None:
            continue
        if not isinstance(document, dict):
            raise ValueError(f"document {i + 1} is not an object")
        if str(document.get("kind", "")).endswith("List"):
            items = document.get("items", document)
            if items is not document:
                yield from _items(document, items, f"document {i + 1}")
                continue
        yield document


def encoded(document: Mapping[str, Any]) -> bytes:
    """Encode an object as JSON, so that manifests and the API have one decoder and the same errors.

    Values that JSON does not have become texts, lone surrogates are escaped. Raises ValueError,
    TypeError, RecursionError.
    """
    try:
        return msgspec.json.encode(document)
    except (ValueError, TypeError, OverflowError):
        return json.dumps(document, default=str, skipkeys=True).encode()


def error_text(error: Exception) -> str:
    """Return one of UNREADABLE as text, with its line number if the parser gives one."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}: {error.msg}"
    mark = getattr(error, "problem_mark", None)
    text = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"line {mark.line + 1}: {text}" if mark is not None else f"does not parse: {text}"


def _items(document: Mapping[str, Any], items: object, where: str) -> Iterator[object]:
    if items is None:
        return
    if not isinstance(items, list):
        raise ValueError(f"{where}: items is not a list")
    # The API server omits apiVersion and kind in the items of a ServiceList and its like.
    version, kind = document.get("apiVersion"), str(document["kind"]).removesuffix("List")
    for item in items:
        yield {"apiVersion": version, "kind": kind} | item if isinstance(item, dict) else item


def _json(data: bytes) -> Any:
    encoding = json.detect_encoding(data)
    # Invalid UTF-8 becomes lone surrogates, which `decode_object` rejects in their object alone.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    return json.loads(data.decode(encoding, errors), parse_int=_integer, parse_constant=str)


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= _LONGEST_INTEGER else text


def _yaml(data: bytes) -> Iterator[Any]:
    known: dict[int, int] = {}
    for document in yaml.load_all(data, _loader()):
        # A few aliases of aliases expand to more values than fit into memory.
        if b"*" in data and _count(document, known) > MOST_VALUES:
            raise ValueError(f"its aliases expand to more than {MOST_VALUES:,} values")
        yield document


def _count(value: object, known: dict[int, int]) -> int:
    """Count the values inside a value, those of aliases each time. Raises RecursionError."""
    if not isinstance(value, dict | list):
        return 1
    count = known.get(id(value))
    if count is None:
        # A value that contains itself is as large as the limit.
        known[id(value)] = MOST_VALUES + 1
        inner = value.values() if isinstance(value, dict) else value
        count = known[id(value)] = 1 + sum(_count(each, known) for each in inner)
    return count


def _loader() -> type[yaml.SafeLoader]:
    """Make a safe loader in which a scalar that its type cannot have is a text."""
    # The parser in C, if PyYAML was built with libyaml.
    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader: type[yaml.SafeLoader] = type("ManifestLoader", (base,), {})
    for tag in ("int", "float", "timestamp", "binary"):
        of_base = base.yaml_constructors[f"tag:yaml.org,2002:{tag}"]
        loader.add_constructor(f"tag:yaml.org,2002:{tag}", _lenient(of_base))
    return loader


def _lenient(construct: Any) -> Any:
    def constructor(loader: Any, node: Any) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, OverflowError):
            return node.value

    return constructor
