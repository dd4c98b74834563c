"""Objects in Kubernetes' protobuf form: those that some clients write, and lists and watches.

`kubectl create` sends it. A client that accepts it gets
Services, EndpointSlices, Nodes and errors in it. `protobuf_fields` and `protobuf_received` have the
messages.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any

import msgspec

from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.protobuf_fields import (
    LIST_META,
    SENT,
    TYPE_META,
    Form,
    Part,
)
from pyproxy_lab.apiserver.protobuf_received import RECEIVED

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
STREAM_TYPE = f"{MEDIA_TYPE};stream=watch"
_MAGIC = b"k8s\x00"
_VARINT, _BYTES = 0, 2
# Of a runtime.Unknown: its type, the object's own bytes, and two texts that are empty.
_TYPE_FIELD, _RAW_FIELD = 1, 2
_UNKNOWN_END = b"\x1a\x00\x22\x00"
_LENGTH_SIZE = 4
# Global names, because an attribute lookup on an enum is slow.
_TEXT, _TEXTS, _MAP = Form.TEXT, Form.TEXTS, Form.MAP
_NUMBER, _FLAG = Form.NUMBER, Form.FLAG


def decode(body: bytes) -> Object | None:
    """Decode an object; None for a kind that is not known here. Raises ValueError."""
    if not body.startswith(_MAGIC):
        raise ValueError("it does not begin with k8s")
    kind: Object = {}
    raw = b""
    for number, value in _fields(body[len(_MAGIC) :]):
        if number == _TYPE_FIELD and isinstance(value, bytes):
            kind = _message(value, TYPE_META)
        elif number == _RAW_FIELD and isinstance(value, bytes):
            raw = value
    part = RECEIVED.get(kind.get("kind", ""))
    return None if part is None else {**kind, **_message(raw, part)}


def encode(kind: str, obj: Object) -> bytes:
    """Encode an object of one of the kinds in SENT, without its kind, as Go does."""
    return _encoded(obj, SENT[kind])


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    """Return an encoded object with its kind, as it is alone and in an event."""
    return b"".join(_enveloped(api_version, kind, len(raw), [raw]))


def listing(api_version: str, kind: str, meta: Object, items: list[bytes]) -> Iterator[bytes]:
    """Return a list of encoded objects, in pieces; `kind` is that of the list."""
    heads = [_key(2, _BYTES) + _number(len(item)) for item in items]
    first = _field(1, _encoded(meta, LIST_META))
    size = len(first) + sum(map(len, heads)) + sum(map(len, items))
    pieces = (piece for pair in zip(heads, items, strict=True) for piece in pair)
    return _enveloped(api_version, kind, size, [first], pieces)


def event(event_type: str, enveloped: bytes) -> bytes:
    """Return an event of a watch, with its length before it."""
    raw = _field(1, event_type.encode()) + _field(2, _field(1, enveloped))
    return len(raw).to_bytes(_LENGTH_SIZE) + raw


def events(chunk: bytes) -> list[bytes]:
    """Split whole events of a watch; each keeps its length."""
    found, at = [], 0
    while at < len(chunk):
        end = at + _LENGTH_SIZE + int.from_bytes(chunk[at : at + _LENGTH_SIZE])
        found.append(chunk[at:end])
        at = end
    return found


def _enveloped(api_version: str, kind: str, size: int, *pieces: Iterable[bytes]) -> Iterator[bytes]:
    yield _before_raw(api_version, kind) + _number(size)
    for some in pieces:
        yield from some
    yield _UNKNOWN_END


@cache
def _before_raw(api_version: str, kind: str) -> bytes:
    """Return the bytes of an object with its kind before the size of its own bytes."""
    type_meta = _encoded({"apiVersion": api_version, "kind": kind}, TYPE_META)
    return _MAGIC + _field(_TYPE_FIELD, type_meta) + _key(_RAW_FIELD, _BYTES)


def _encoded(obj: Object, part: Part) -> bytes:
    found = bytearray()
    for number, (name, form) in part.fields.items():
        is_pointer = name[-1] == "?"
        value: Any = obj.get(name[:-1] if is_pointer else name)
        if value is None and is_pointer:
            continue
        if form is _TEXT:
            found += _field(number, str(value).encode() if value else b"")
        elif isinstance(form, Part):
            for each in (value or ()) if form.repeated else (value or {},):
                found += _field(number, _encoded(each, form))
        elif form is _TEXTS:
            for text in value or ():
                found += _field(number, text.encode())
        elif form is _MAP:
            for key in sorted(value or ()):
                pair = _field(1, key.encode()) + _field(2, value[key].encode())
                found += _field(number, pair)
        elif form is _FLAG or form is _NUMBER:
            found += _key(number, _VARINT) + _number(int(value or 0))
        else:
            found += _field(number, _scalar(value, form))
    return bytes(found)


def _scalar(value: object, form: Form) -> bytes:
    """Encode a value that has a length and is no message of the tables."""
    if form is Form.JSON:
        return _field(1, msgspec.json.encode(value))
    if form is Form.TIME:
        if not value:
            return b""
        moment = datetime.fromisoformat(str(value))
        seconds = int(moment.astimezone(UTC).timestamp())
        return _key(1, _VARINT) + _number(seconds) + _key(2, _VARINT) + _number(0)
    if form is Form.INT_OR_STRING:
        is_text = isinstance(value, str)
        number = 0 if is_text or not isinstance(value, int) else value
        return (
            (_key(1, _VARINT) + _number(int(is_text)))
            + (_key(2, _VARINT) + _number(number))
            + _field(3, str(value).encode() if is_text else b"")
        )
    return str(value or "").encode()


def _field(number: int, value: bytes) -> bytes:
    return _key(number, _BYTES) + _number(len(value)) + value


def _key(number: int, kind: int) -> bytes:
    return _number(number << 3 | kind)


# Nearly all are keys and sizes, of which a list of 10,000 objects has few different ones.
@lru_cache(4096)
def _number(value: int) -> bytes:
    """Encode a varint; a negative number has ten bytes."""
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _message(raw: bytes, part: Part) -> Object:
    """Decode a message; what has its zero value is left out, as in JSON."""
    result: Object = {}
    for number, value in _fields(raw):
        if number not in part.fields:
            continue
        declared, form = part.fields[number]
        name = declared.removesuffix("?")
        if isinstance(value, int):
            if value or declared != name:
                result[name] = bool(value) if form is Form.FLAG else value
        elif isinstance(form, Part):
            inner = _message(value, form)
            if form.repeated:
                result.setdefault(name, []).append(inner)
            else:
                result[name] = inner
        elif form is Form.TEXTS:
            result.setdefault(name, []).append(value.decode())
        elif form is Form.MAP:
            entry = dict(_fields(value))
            result.setdefault(name, {})[_text(entry.get(1))] = _text(entry.get(2))
        elif form is Form.BYTES_MAP:
            entry = dict(_fields(value))
            content = entry.get(2, b"")
            encoded = base64.b64encode(content if isinstance(content, bytes) else b"").decode()
            result.setdefault(name, {})[_text(entry.get(1))] = encoded
        elif form is Form.INT_OR_STRING or form is Form.MICRO_TIME:
            result[name] = _of_parts(dict(_fields(value)), form)
        elif form is Form.TEXT and value:
            # Times and managed fields are the server's own.
            result[name] = value.decode()
    return result


def _of_parts(parts: Mapping[int, int | bytes], form: Form) -> str | int | bytes:
    """Return what a message of several fields is in JSON, where it is one value."""
    if form is Form.INT_OR_STRING:
        return _text(parts.get(3)) if parts.get(1) else parts.get(2, 0)
    seconds, nanoseconds = (int(parts.get(number, 0)) for number in (1, 2))
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def _text(value: int | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else ""


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Return a message's fields by number: numbers as they are, everything else as bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        value, at = _varint(raw, at)
        if key & 7 == _VARINT:
            yield key >> 3, value
        elif key & 7 == _BYTES and at + value <= len(raw):
            yield key >> 3, raw[at : at + value]
            at += value
        else:
            raise ValueError(f"field {key >> 3} cannot be read")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 64:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number is cut off")
