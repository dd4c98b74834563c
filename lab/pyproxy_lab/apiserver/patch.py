"""Merge patch (RFC 7386) and JSON patch (RFC 6902)."""

from __future__ import annotations

import copy
from typing import Any

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.status import ApiError


def merge(target: Any, patch: Any) -> Any:
    """Apply a merge patch and return the result; neither argument is changed."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def apply_operations(document: Any, operations: Any) -> Any:
    """Apply a JSON patch and return the result; the document is not changed.

    Raises ApiError: 400 for what is no patch, 422 for one that does not fit the document.
    """
    if not isinstance(operations, list):
        raise status.bad_request("a JSON patch must be a list of operations")
    result = copy.deepcopy(document)
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise status.bad_request("a JSON patch's operation must be an object with a path")
        try:
            result = _apply(result, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise _unfit(operation, error) from error
    return result


def _unfit(operation: dict[str, Any], error: Exception) -> ApiError:
    message = (
        "the server rejected our request due to an error in our request: "
        f"{operation.get('op')} operation does not apply: doc is missing path or value: "
        f"{operation['path']}: {error}"
    )
    return ApiError(422, "Invalid", message, {})


def _apply(document: Any, operation: dict[str, Any]) -> Any:
    path = _pointer(operation["path"])
    match operation.get("op"):
        case "add":
            return _put(document, path, copy.deepcopy(operation["value"]), insert=True)
        case "replace":
            _get(document, path)
            return _put(document, path, copy.deepcopy(operation["value"]), insert=False)
        case "remove":
            return _remove(document, path)
        case "test":
            if (found := _get(document, path)) != operation["value"]:
                raise ValueError(f"testing value failed: found {found!r}")
            return document
        case "move":
            source = _pointer(operation["from"])
            value = _get(document, source)
            return _put(_remove(document, source), path, value, insert=True)
        case "copy":
            value = copy.deepcopy(_get(document, _pointer(operation["from"])))
            return _put(document, path, value, insert=True)
    raise ValueError(f"unexpected kind {operation.get('op')!r}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is no JSON pointer")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _get(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[_index(part, len(document))] if _is_list(document) else document[part]
    return document


def _put(document: Any, path: list[str], value: Any, insert: bool) -> Any:
    if not path:
        return value
    parent, last = _get(document, path[:-1]), path[-1]
    if not _is_list(parent):
        parent[last] = value
    elif insert:
        parent.insert(len(parent) if last == "-" else _index(last, len(parent) + 1), value)
    else:
        parent[_index(last, len(parent))] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    if not path:
        raise ValueError("the whole document cannot be removed")
    parent, last = _get(document, path[:-1]), path[-1]
    del parent[_index(last, len(parent)) if _is_list(parent) else last]
    return document


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _index(text: str, length: int) -> int:
    if not (text.isascii() and text.isdigit()) or (text != "0" and text[0] == "0"):
        raise ValueError(f"{text!r} is no index")
    if int(text) >= length:
        raise IndexError(f"index {text} is beyond the end")
    return int(text)
