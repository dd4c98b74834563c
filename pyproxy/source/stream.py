"""From a watch's bytes to its events.

A watch is one JSON document a line, and lines fall anywhere within what one read returns. Most
events arrive whole, in one chunk, and are decoded where they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec
from msgspec import Raw

from pyproxy.errors import SourceError
from pyproxy.source import wire
from pyproxy.source.client import ApiStatusError

_T = TypeVar("_T")
_LIST = msgspec.json.Decoder(wire.ObjectList)
_EVENT = msgspec.json.Decoder(wire.WatchEvent)
_BOOKMARK = msgspec.json.Decoder(wire.Bookmark)
_STATUS = msgspec.json.Decoder(wire.Status)


class GoneError(SourceError):
    """The version is too old for the server (410): only a new list helps."""


class BrokenError(SourceError):
    """An answer that had begun well broke off; the next one will do."""


class GarbledError(SourceError):
    """An answer with a good status that is not what the API sends."""


def lines(chunks: Iterable[bytes]) -> Iterator[memoryview]:
    """Cut chunks into lines, empty ones left out.

    Raises BrokenError where the last chunk ends within a line.
    """
    parts: list[bytes] = []
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if parts:
                parts.append(chunk[start:end])
                yield memoryview(b"".join(parts))
                parts.clear()
            elif end > start:
                yield memoryview(chunk)[start:end]
            start = end + 1
        if start < len(chunk):
            parts.append(chunk[start:])
    if parts:
        raise BrokenError("a watch ended in the middle of a line")


def event(line: memoryview) -> wire.WatchEvent:
    """Read one line of a watch.

    Raises GoneError and ApiStatusError for what the server says has gone wrong, GarbledError for
    what is no event.
    """
    found = _decode(_EVENT, line)
    if found.type == "ERROR":
        status = _decode(_STATUS, found.object)
        reason = " ".join((status.message or status.reason or "unknown error").split())
        text = f"a watch ended: {reason}"
        if status.code == 410 or status.reason in {"Expired", "Gone"}:
            raise GoneError(text)
        raise ApiStatusError(text, status.code or 500)
    return found


def bookmark(raw: Raw) -> wire.Meta:
    """Read what a BOOKMARK event says: a version, and whether it ends a list.

    Raises GarbledError.
    """
    return _decode(_BOOKMARK, raw).metadata


def object_list(data: bytes, kind: str) -> wire.ObjectList:
    """Read the body of a list of this kind. Raises GarbledError."""
    found = _decode(_LIST, data)
    if found.kind != kind:
        raise GarbledError(f"the answer is a {found.kind}, no {kind}")
    return found


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes | memoryview | Raw) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        sample = bytes(memoryview(data)[:80])
        raise GarbledError(f"the answer is not what the API sends: {error}: {sample!r}") from error
