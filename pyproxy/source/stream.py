"""Split the bytes of a watch into events.

A watch sends one JSON document per line. Lines may span reads, but most events arrive whole in one
chunk and are decoded without a copy.
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
    """The server no longer has this resourceVersion (410 Gone): a new list is needed."""


class ConnectionLostError(SourceError):
    """The connection broke within a response; a new request can succeed."""


class MalformedResponseError(SourceError):
    """A response with status 200 that is not what the API sends."""


def lines(chunks: Iterable[bytes]) -> Iterator[memoryview]:
    """Split chunks into lines without the empty ones.

    Raises ConnectionLostError if the last chunk ends within a line.
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
                # A view: msgspec.Raw refers to the same bytes until the object is decoded.
                yield memoryview(chunk)[start:end]
            start = end + 1
        if start < len(chunk):
            parts.append(chunk[start:])
    if parts:
        raise ConnectionLostError("a watch ended in the middle of a line")


def event(line: memoryview) -> wire.WatchEvent:
    """Decode one line of a watch.

    Raises GoneError or ApiStatusError for an event of type ERROR, MalformedResponseError for a line
    that is not an event.
    """
    found = _decode(_EVENT, line)
    # The head of a watch was 200, so a version that has expired since is reported by an event.
    if found.type == "ERROR":
        status = _decode(_STATUS, found.object)
        reason = " ".join((status.message or status.reason or "unknown error").split())
        text = f"a watch ended: {reason}"
        if status.code == 410 or status.reason in {"Expired", "Gone"}:
            raise GoneError(text)
        raise ApiStatusError(text, status.code or 500)
    return found


def bookmark(raw: Raw) -> wire.Meta:
    """Decode the metadata of a BOOKMARK event. Raises MalformedResponseError."""
    return _decode(_BOOKMARK, raw).metadata


def object_list(data: bytes, kind: str) -> wire.ObjectList:
    """Decode the body of a list of this kind. Raises MalformedResponseError."""
    found = _decode(_LIST, data)
    if found.kind != kind:
        raise MalformedResponseError(f"the response is a {found.kind}, not a {kind}")
    return found


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes | memoryview | Raw) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        sample = bytes(memoryview(data)[:80])
        raise MalformedResponseError(f"unexpected response: {error}: {sample!r}") from error
