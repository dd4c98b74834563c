"""Split the bytes of a list or a watch in protobuf into objects, as `stream` does for JSON.

A response begins with a magic number, and each event of a watch with its length. The objects stay
undecoded, so that `decode_object` rejects a malformed one alone.

Facts: the length-delimited framing and the envelope runtime.Unknown of k8s.io/apimachinery v0.36.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from pyproxy.source import protobuf_objects, protobuf_schema, wire
from pyproxy.source.body import LARGEST_FRAME, TooLargeError
from pyproxy.source.protobuf_objects import MAGIC
from pyproxy.source.stream import ConnectionLostError, MalformedResponseError, error_event

_LENGTH_SIZE = 4
_EVENT = protobuf_schema.message("WatchEvent")
_LIST = protobuf_schema.message("UnknownList")


class ProtobufEvent(msgspec.Struct, frozen=True):
    """An event of a watch, with an undecoded object."""

    type: str
    object: wire.ProtobufObject


class ProtobufList(msgspec.Struct, frozen=True):
    """A list, or a page of one, with undecoded items."""

    metadata: wire.ListMeta
    items: list[wire.ProtobufObject]


def frames(chunks: Iterable[bytes], limit: int = LARGEST_FRAME) -> Iterator[bytes]:
    """Split chunks into events by the length before each, 32 bits in network byte order.

    Raises ConnectionLostError if the last chunk ends within an event, and TooLargeError for one of
    more than `limit` bytes.
    """
    held = bytearray()
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start >= _LENGTH_SIZE:
            first = start + _LENGTH_SIZE
            size = int.from_bytes(held[start:first])
            if size > limit:
                raise TooLargeError(f"an event of a watch has more than {limit} bytes")
            if len(held) - first < size:
                break
            start = first + size
            with memoryview(held) as view:
                frame = bytes(view[first:start])
            yield frame
        del held[:start]
    if held:
        raise ConnectionLostError("a watch ended in the middle of an event")


def event(frame: bytes) -> ProtobufEvent:
    """Decode one event of a watch.

    Raises GoneError or ApiStatusError for an event of type ERROR, MalformedResponseError for bytes
    that are not an event.
    """
    try:
        found = protobuf_objects.parse(_EVENT, frame)
        data = found.object.raw
        if not data.startswith(MAGIC):
            raise msgspec.DecodeError("an object without its kind")
        if found.type != "ERROR":
            return ProtobufEvent(found.type, wire.ProtobufObject(data))
        status = protobuf_objects.status(data)
    except msgspec.DecodeError as error:
        raise _malformed(frame, error) from error
    raise error_event(status)


def bookmark(obj: wire.ProtobufObject) -> wire.Meta:
    """Decode the metadata of a BOOKMARK event. Raises MalformedResponseError."""
    try:
        return protobuf_objects.bookmark(obj.data)
    except msgspec.DecodeError as error:
        raise _malformed(obj.data, error) from error


def object_list(data: bytes, kind: str) -> ProtobufList:
    """Decode the body of a list of this kind. Raises MalformedResponseError."""
    try:
        if not data.startswith(MAGIC):
            raise msgspec.DecodeError("it does not begin with k8s")
        found = protobuf_objects.parse(_LIST, data[len(MAGIC) :])
    except msgspec.DecodeError as error:
        raise _malformed(data, error) from error
    if found.type_meta.kind != kind:
        raise MalformedResponseError(f"the response is a {found.type_meta.kind}, not a {kind}")
    meta = found.list.metadata
    return ProtobufList(
        wire.ListMeta(meta.resource_version, meta.continue_),
        [wire.ProtobufObject(item) for item in found.list.items],
    )


def _malformed(data: bytes, error: Exception) -> MalformedResponseError:
    # Without a sample, as in `stream`.
    return MalformedResponseError(f"unexpected response of {len(data)} bytes: {error}")
