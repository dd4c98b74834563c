"""Split the bytes of a watch in JSON into events.

A watch sends one JSON document per line. Lines may span reads, but most events arrive whole in one
chunk and are decoded without a copy. A list or an event that contains a malformed object is split
by `salvage`, and the object stays undecoded until `decode_object` rejects it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec
from msgspec import Raw

from pyproxy.errors import SourceError
from pyproxy.source import salvage, wire
from pyproxy.source.body import LARGEST_FRAME, TooLargeError
from pyproxy.source.client import ApiStatusError

_T = TypeVar("_T")
_LIST = msgspec.json.Decoder(wire.ObjectList)
_EVENT = msgspec.json.Decoder(wire.WatchEvent)
_BOOKMARK = msgspec.json.Decoder(wire.Bookmark)
_STATUS = msgspec.json.Decoder(wire.Status)
_TYPE = msgspec.json.Decoder(str)
_LIST_META = msgspec.json.Decoder(wire.ListMeta)
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class GoneError(SourceError):
    """The server no longer has this resourceVersion (410 Gone): a new list is needed."""


class ConnectionLostError(SourceError):
    """The connection broke within a response; a new request can succeed."""


class MalformedResponseError(SourceError):
    """A response with status 200 that is not what the API sends."""


class WatchStatusError(ApiStatusError):
    """An event of type ERROR ended a watch, for another reason than 410 Gone."""


def lines(chunks: Iterable[bytes], limit: int = LARGEST_FRAME) -> Iterator[memoryview]:
    """Split chunks into lines without the empty ones.

    Raises ConnectionLostError if the last chunk ends within a line, and TooLargeError as soon as a
    line has more than `limit` bytes.
    """
    parts: list[bytes] = []
    held = 0
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if parts:
                parts.append(chunk[start:end])
                yield memoryview(b"".join(parts))
                parts.clear()
                held = 0
            elif end > start:
                # A view: msgspec.Raw refers to the same bytes until the object is decoded.
                yield memoryview(chunk)[start:end]
            start = end + 1
        if start < len(chunk):
            parts.append(chunk[start:])
            held += len(chunk) - start
            if held > limit:
                raise TooLargeError(f"an event of a watch has more than {limit} bytes")
    if parts:
        raise ConnectionLostError("a watch ended in the middle of a line")


def event(line: memoryview) -> wire.WatchEvent:
    """Decode one line of a watch.

    Raises GoneError or WatchStatusError for an event of type ERROR, MalformedResponseError for a
    line that is not an event.
    """
    try:
        found = _EVENT.decode(line)
    except _UNDECODABLE as error:
        found = _salvaged_event(line, error)
    if found.type == "ERROR":
        raise error_event(_decode(_STATUS, found.object))
    return found


def error_event(status: wire.Status) -> GoneError | WatchStatusError:
    """Return the exception for an event of type ERROR."""
    reason = " ".join((status.message or status.reason or "unknown error").split())
    text = f"a watch ended: {reason}"
    # The head of a watch was 200, so a version that has expired since is reported by an event.
    if status.code == 410 or status.reason in {"Expired", "Gone"}:
        return GoneError(text)
    return WatchStatusError(text, status.code or 500)


def bookmark(raw: Raw) -> wire.Meta:
    """Decode the metadata of a BOOKMARK event. Raises MalformedResponseError."""
    return _decode(_BOOKMARK, raw).metadata


def object_list(data: bytes, kind: str) -> wire.ObjectList:
    """Decode the body of a list of this kind. Raises MalformedResponseError."""
    try:
        found = _LIST.decode(data)
    except _UNDECODABLE as error:
        found = _salvaged_list(data, error)
    if found.kind != kind:
        raise MalformedResponseError(f"the response is a {found.kind}, not a {kind}")
    return found


def is_older(version: str, than: str) -> bool:
    """Compare two resourceVersions as numbers; versions that are not numbers are never older."""
    numbers = version.isdecimal() and than.isdecimal()
    # The longer of two numbers without leading zeros is the larger one.
    return numbers and (len(version), version) < (len(than), than)


def _salvaged_event(line: memoryview, error: Exception) -> wire.WatchEvent:
    try:
        parts = salvage.members(bytes(line))
        salvage.members(parts["object"])  # raises for anything but an object
        return wire.WatchEvent(_decode(_TYPE, parts["type"]), Raw(parts["object"]))
    except (ValueError, LookupError):
        raise _malformed(line, error) from error


def _salvaged_list(data: bytes, error: Exception) -> wire.ObjectList:
    try:
        parts = salvage.members(data)
        items = [Raw(item) for item in salvage.elements(parts["items"])]
        meta = _decode(_LIST_META, parts["metadata"])
        return wire.ObjectList(salvage.text(parts["kind"]), meta, items)
    except (ValueError, LookupError):
        raise _malformed(data, error) from error


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes | memoryview | Raw) -> _T:
    try:
        return decoder.decode(data)
    except _UNDECODABLE as error:
        raise _malformed(data, error) from error


def _malformed(data: bytes | memoryview | Raw, error: Exception) -> MalformedResponseError:
    # Without a sample, because the bytes may be a page of a proxy that shows the request's headers.
    size = memoryview(data).nbytes
    return MalformedResponseError(f"unexpected response of {size} bytes: {error}")
