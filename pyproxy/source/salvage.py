"""Split JSON that the decoder rejects, so that one malformed object does not hide the others.

msgspec validates a whole document: a lone surrogate, NaN or deep nesting anywhere makes a list or
an event undecodable. These functions only match brackets and strings, iteratively, and leave each
part undecoded. They run only after a decoder has failed, because they are about 30 times slower.
"""

from __future__ import annotations

import re

import msgspec

from pyproxy.source import wire

# A string as a whole, because brackets and commas in it do not count.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{},]', re.DOTALL)
_MEMBER = re.compile(rb'\s*"((?:[^"\\]++|\\.)*+)"\s*:\s*', re.DOTALL)
_BLANK = re.compile(rb"\s*")
_TEXT = msgspec.json.Decoder(str)
_OPEN, _CLOSE, _QUOTE = frozenset(b"[{"), frozenset(b"]}"), ord('"')


def elements(data: bytes) -> list[bytes]:
    """Return the elements of an array. Raises ValueError if it is none or not closed."""
    return _parts(data, b"[")


def members(data: bytes) -> dict[str, bytes]:
    """Return the members of an object by their names, the last one of equal names.

    Names with escapes are not unescaped. Raises ValueError if `data` is no object or not closed.
    """
    found: dict[str, bytes] = {}
    for part in _parts(data, b"{"):
        if (name := _MEMBER.match(part)) is not None:
            found[name[1].decode(errors="replace")] = part[name.end() :]
    return found


def identity(data: bytes) -> wire.Identity:
    """Return the legible parts of an object's name, namespace and resourceVersion."""
    try:
        meta = members(members(data)["metadata"])
    except (ValueError, LookupError):
        return wire.Identity()
    return wire.Identity(
        text(meta.get("name", b"")),
        text(meta.get("namespace", b"")),
        text(meta.get("resourceVersion", b"")),
    )


def text(data: bytes) -> str:
    """Decode a JSON string, empty if it is none or not valid Unicode."""
    try:
        return _TEXT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _parts(data: bytes, opening: bytes) -> list[bytes]:
    """Return what the commas of the outermost bracket separate."""
    begin = _BLANK.match(data)
    start = begin.end() if begin else 0
    if data[start : start + 1] != opening:
        raise ValueError("not an array or object as expected")
    parts: list[bytes] = []
    depth = 0
    for token in _TOKEN.finditer(data, start):
        mark = data[token.start()]
        if mark == _QUOTE:
            continue
        if mark in _OPEN:
            depth += 1
            if depth == 1:
                start = token.end()
        elif mark in _CLOSE:
            depth -= 1
            if depth == 0:
                last = data[start : token.start()]
                if parts or last.strip():
                    parts.append(last)
                if data[token.end() :].strip():
                    raise ValueError("data after the end")
                return parts
        elif depth == 1:
            parts.append(data[start : token.start()])
            start = token.end()
    raise ValueError("not closed")
