"""Split the bytes of a list or a watch in protobuf into objects, as `stream` does for JSON.

A response begins with a magic number, and each event of a watch with its length. The objects stay
undecoded, so that `decode_object` rejects a malformed one alone.

Facts: the length-delimited framing and the envelope runtime.Unknown of k8s.io/apimachinery v0.36.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import msgspec

from pyproxy.source import protobuf_objects, protobuf_schema, wire
from pyproxy.source.body import LARGEST_FRAME, TooLargeError
from pyproxy.source.protobuf_objects import MAGIC, varint
from pyproxy.source.stream import ConnectionLostError, MalformedResponseError, error_event

_LENGTH = struct.Struct(">I")
_LENGTH_SIZE = _LENGTH.size
# The bytes of an event before the length of its object.
_TYPES = {b"\n%c%b\x12" % (len(t), t.encode()): t for t in ("ADDED", "MODIFIED", "DELETED")}
_RAW = 1 << 3 | 2
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
        start, count = 0, len(held)
        with memoryview(held) as view:
            while count - start >= _LENGTH_SIZE:
                first = start + _LENGTH_SIZE
                size: int = _LENGTH.unpack_from(view, start)[0]
                if size > limit:
                    raise TooLargeError(f"an event of a watch has more than {limit} bytes")
                if count - first < size:
                    break
                start = first + size
                yield view[first:start].tobytes()
        del held[:start]
    if held:
        raise ConnectionLostError("a watch ended in the middle of an event")


def event(frame: bytes) -> ProtobufEvent:
    """Decode one event of a watch.

    Raises GoneError or WatchStatusError for an event of type ERROR, MalformedResponseError for
    bytes that are not an event.
    """
    if (kind := _TYPES.get(frame[: frame[1] + 3] if len(frame) > 1 else b"")) is not None:
        # The form that Go writes, without the calls for a parser's messages and their fields.
        size, start = varint(frame, len(kind) + 3)
        if size == len(frame) - start > 0 and frame[start] == _RAW:
            size, start = varint(frame, start + 1)
            if size == len(frame) - start and frame.startswith(MAGIC, start):
                return ProtobufEvent(kind, wire.ProtobufObject(frame[start:]))
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
