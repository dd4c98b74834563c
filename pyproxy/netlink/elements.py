"""Elements of nf_tables' sets and maps, to and from bytes.

Facts: include/uapi/linux/netfilter/nf_tables.h. Element keys and data are the concatenated fields,
each padded to 4 bytes; fields are in network order but for numgen's, which is in host order.
"""

from __future__ import annotations

import enum
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import accumulate, islice
from typing import Final, TypeGuard, cast

import msgspec

from pyproxy.netlink.attributes import (
    NESTED,
    attribute,
    attribute_map,
    attributes,
    nested,
    string,
    text,
)
from pyproxy.netlink.frames import NLM_F_CREATE
from pyproxy.netlink.nfnetlink import HEADER_SIZE, Message
from pyproxy.netlink.nftables import NOTHING, message_type

_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14

_LIST_TABLE, _LIST_SET, LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM = 1
ELEM_KEY, ELEM_DATA, _ELEM_FLAGS, _ELEM_USERDATA, _ELEM_KEY_END = 1, 2, 3, 6, 10
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_INTERVAL_END = struct.pack(">I", 1)
# Userdata is opaque to the kernel: nft stores its own records there, each a kind, a size, a value.
_COMMENT = 0

# Verdict codes are signed: netfilter's own (NF_DROP) are not negative, nf_tables' are.
_NF_DROP = struct.pack(">i", 0)
_NFT_GOTO = struct.pack(">i", -4)

_ELEMENTS_LIMIT = 60_000
"""Bytes of elements in a message: an attribute's length is 16 bits."""

KEYS_LIMIT = 1_000
"""Keys of a request for some elements: each takes 12 bytes beside those of the key."""

COMMENT_LIMIT = 120
"""Bytes of a comment that nft lists; it allows 128 with the zero byte at the end."""

DROP = "drop"
"""The target of a tag that drops."""


class Tag(msgspec.Struct, frozen=True, gc=False):
    """The value of an element that is not plain data.

    `target` is the chain that a verdict map's element goes to, DROP, or empty in a set. `comment`
    names the Service in listings of the table.
    """

    target: str
    comment: str = ""


Value = bytes | Tag
"""A data map's data, empty in a set without comments; or a tag."""


class Shape(enum.Enum):
    """How a set's keys cover addresses: exactly, as a range of one field, or of several."""

    EXACT = "exact"
    RANGE = "range"
    CONCATENATED_RANGE = "concatenated range"


_EXACT: Final = Shape.EXACT

_KEY_AT = 12
"""Bytes of an element before its key: three headers, of the element, its key and the value."""


class ElementMessage(msgspec.Struct, frozen=True):
    """A message, and the keys of the elements that it writes to a set, in order."""

    set_name: str
    keys: tuple[bytes, ...]
    message: Message


def add_elements(
    table: str, set_name: str, rows: Mapping[bytes, Value], shape: Shape
) -> Iterator[ElementMessage]:
    """Pack elements to add; a range's key is its lowest value followed by its highest."""
    # Without NLM_F_EXCL the kernel accepts an element that exists with the same data; it refuses
    # other data with EEXIST, so a change is a deletion and an addition in one batch.
    return _messages(_NEWSETELEM, NLM_F_CREATE, (table, set_name), rows, shape)


def add_packed(table: str, set_name: str, elements: Sequence[bytes]) -> Iterator[ElementMessage]:
    """Return the messages of `add_elements`, without keys, given elements that are packed."""
    head = string(_LIST_TABLE, table) + string(_LIST_SET, set_name)
    ends = list(accumulate(map(len, elements)))
    begin = size = 0
    while begin < len(elements):
        end = bisect_right(ends, size + _ELEMENTS_LIMIT, begin)
        body = head + attribute(LIST_ELEMENTS | NESTED, b"".join(elements[begin:end]))
        yield ElementMessage(set_name, (), Message(message_type(_NEWSETELEM), NLM_F_CREATE, body))
        begin, size = end, ends[end - 1]


def delete_elements(
    table: str, set_name: str, keys: Iterable[bytes], shape: Shape
) -> Iterator[ElementMessage]:
    """Pack elements to delete, as `add_elements` does."""
    # The key identifies the element; the kernel does not compare the data of a deletion.
    return _messages(_DELSETELEM, 0, (table, set_name), dict.fromkeys(keys, b""), shape)


def get_elements(table: str, set_name: str) -> Message:
    """Request all elements of a set."""
    body = string(_LIST_TABLE, table) + string(_LIST_SET, set_name)
    return Message(message_type(_GETSETELEM), 0, body)


def get_some_elements(table: str, set_name: str, keys: Sequence[bytes]) -> Message:
    """Request elements of a set whose keys are exact; ENOENT at the first that is absent.

    The keys have one length, and fit in a message: KEYS_LIMIT.
    """
    before, behind, _ = frame(len(keys[0]), 0)
    packed = b"".join([before + key + behind for key in keys])
    body = string(_LIST_TABLE, table) + string(_LIST_SET, set_name)
    body += attribute(LIST_ELEMENTS | NESTED, packed)
    return Message(message_type(_GETSETELEM), 0, body)


def get_element(table: str, set_name: str, key: bytes) -> Message:
    """Request one element of a set whose keys are exact; ENOENT if it is absent."""
    (request,) = _messages(_GETSETELEM, 0, (table, set_name), {key: b""}, Shape.EXACT)
    return request.message


def read_elements(replies: Iterable[memoryview], shape: Shape) -> dict[bytes, Value]:
    """Read the replies to `get_elements`, in the form that `add_elements` takes."""
    rows: dict[bytes, Value] = {}
    bounds: list[tuple[bytes, bool]] = []
    for reply in replies:
        for kind, items in attributes(reply):
            if kind != LIST_ELEMENTS:
                continue
            if shape is Shape.EXACT and (uniform := _read_uniform(items)):
                rows.update(uniform)
                continue
            for _, item in attributes(items):
                fields = attribute_map(item)
                key = element_value(fields.get(ELEM_KEY, NOTHING))
                if not key:
                    continue  # a catch-all element, which pyproxy never adds
                if shape is Shape.RANGE:
                    bounds.append((key, bytes(fields.get(_ELEM_FLAGS, b"")) == _INTERVAL_END))
                    continue
                if shape is Shape.CONCATENATED_RANGE:
                    key += element_value(fields[_ELEM_KEY_END]) if _ELEM_KEY_END in fields else key
                rows[key] = _unpack(fields)
    return _ranges(bounds) if shape is Shape.RANGE else rows


def element_at(message: Message, offset: int) -> int | None:
    """Return the index of the element at an offset into a message, as in a MessageError."""
    position = HEADER_SIZE
    # MessageError.offset names an attribute at any depth, so an element's whole span is compared.
    for kind, value in attributes(message.body):
        position += 4
        if kind == LIST_ELEMENTS:
            for index, (_, element) in enumerate(attributes(value)):
                end = position + 4 + len(element)
                if position <= offset < end:
                    return index
                position = end + (-len(element) % 4)
        position += (len(value) + 3) & ~3
    return None


def _messages(
    kind: int, flags: int, names: tuple[str, str], rows: Mapping[bytes, Value], shape: Shape
) -> Iterator[ElementMessage]:
    table, set_name = names
    head = string(_LIST_TABLE, table) + string(_LIST_SET, set_name)
    packed = (
        _pack_uniform(rows)
        if shape is Shape.EXACT and _are_uniform(rows)
        else _pack_mixed(rows, shape)
    )
    for keys, elements in packed:
        body = head + attribute(LIST_ELEMENTS | NESTED, elements)
        yield ElementMessage(set_name, keys, Message(message_type(kind), flags, body))


def _are_uniform(rows: Mapping[bytes, Value]) -> TypeGuard[Mapping[bytes, bytes]]:
    """Return whether all values are plain data, with keys of one size and values of one size."""
    if set(map(type, rows.values())) != {bytes}:
        return False
    values = cast("Iterable[bytes]", rows.values())
    return len(set(map(len, values))) == 1 == len(set(map(len, rows)))


def _pack_uniform(rows: Mapping[bytes, bytes]) -> Iterator[tuple[tuple[bytes, ...], bytes]]:
    # A first sync packs 100,000 of these; in one set, only keys and values differ.
    sizes = next((len(key), len(value)) for key, value in rows.items())
    before, between, behind = frame(*sizes)
    several = _ELEMENTS_LIMIT // (len(before + between + behind) + sum(sizes))
    left = iter(rows.items())
    while some := list(islice(left, several)):
        elements = [before + key + between + value + behind for key, value in some]
        yield tuple([key for key, _ in some]), b"".join(elements)


def _pack_mixed(
    rows: Mapping[bytes, Value], shape: Shape
) -> Iterator[tuple[tuple[bytes, ...], bytes]]:
    keys: list[bytes] = []
    parts: list[bytes] = []
    size = 0
    # No call for an element of a first sync: it would take a third of the time.
    for key, value in rows.items():
        if shape is not _EXACT:
            element = _pack_range(key, value, shape)
        elif isinstance(value, bytes):
            before, between, behind = frame(len(key), len(value))
            element = before + key + between + value + behind
        else:
            comment = value.comment.encode()[:COMMENT_LIMIT]
            before, between, behind = tag_frame(len(key), value.target, len(comment))
            element = before + key + between + comment + behind
        if size + len(element) > _ELEMENTS_LIMIT:
            yield tuple(keys), b"".join(parts)
            keys, parts, size = [], [], 0
        keys.append(key)
        parts.append(element)
        size += len(element)
    if parts:
        yield tuple(keys), b"".join(parts)


@cache
def frame(key_size: int, value_size: int) -> tuple[bytes, bytes, bytes]:
    """Return the bytes before, between and behind the key and value of a plain element."""
    key = nested(ELEM_KEY, attribute(_DATA_VALUE, bytes(key_size)))
    packed = nested(_LIST_ELEM, key, _payload(bytes(value_size)))
    value_at = len(packed) - value_size - (-value_size % 4)
    return packed[:_KEY_AT], packed[_KEY_AT + key_size : value_at], packed[value_at + value_size :]


@lru_cache(4096)
def tag_frame(key_size: int, target: str, comment_size: int) -> tuple[bytes, bytes, bytes]:
    """Return the bytes before, between and behind the key and comment of a tag's element."""
    key = nested(ELEM_KEY, attribute(_DATA_VALUE, bytes(key_size)))
    packed = nested(_LIST_ELEM, key, _verdict(target), _userdata(bytes(comment_size)))
    # Behind the comment are its zero byte and the padding.
    behind = 1 + -(comment_size + 3) % 4 if comment_size else 0
    comment_at = len(packed) - behind - comment_size
    return (
        packed[:_KEY_AT],
        packed[_KEY_AT + key_size : comment_at],
        packed[comment_at + comment_size :],
    )


def _pack_range(key: bytes, value: Value, shape: Shape) -> bytes:
    half = len(key) // 2
    low = nested(ELEM_KEY, attribute(_DATA_VALUE, key[:half]))
    if shape is Shape.CONCATENATED_RANGE:
        high = nested(_ELEM_KEY_END, attribute(_DATA_VALUE, key[half:]))
        return nested(_LIST_ELEM, low, high, _payload(value))
    # A range of one field is two elements: its start, and an end marker just beyond it.
    start = nested(_LIST_ELEM, low, _payload(value))
    beyond = int.from_bytes(key[half:], "big") + 1
    # A range up to the last address has no end marker; the kernel takes it as open-ended.
    if beyond >> (half * 8):
        return start
    end = nested(ELEM_KEY, attribute(_DATA_VALUE, beyond.to_bytes(half, "big")))
    return start + nested(_LIST_ELEM, end, attribute(_ELEM_FLAGS, _INTERVAL_END))


def _payload(value: Value) -> bytes:
    if isinstance(value, bytes):
        return nested(ELEM_DATA, attribute(_DATA_VALUE, value)) if value else b""
    return _verdict(value.target) + _userdata(value.comment.encode()[:COMMENT_LIMIT])


def _userdata(comment: bytes) -> bytes:
    if not comment:
        return b""
    return attribute(_ELEM_USERDATA, bytes((_COMMENT, len(comment) + 1)) + comment + b"\0")


def _verdict(target: str) -> bytes:
    if not target:
        return b""
    if target == DROP:
        return nested(ELEM_DATA, nested(_DATA_VERDICT, attribute(_VERDICT_CODE, _NF_DROP)))
    goto = attribute(_VERDICT_CODE, _NFT_GOTO) + string(_VERDICT_CHAIN, target)
    return nested(ELEM_DATA, nested(_DATA_VERDICT, goto))


def _read_uniform(items: memoryview) -> dict[bytes, Value] | None:
    """Read elements that differ in key and data only; None if one has another layout."""
    first = next(attributes(items), (0, NOTHING))[1]
    fields = attribute_map(first)
    # Comments, timeouts and counters make elements differ in size: those are read one by one.
    if fields.keys() != {ELEM_KEY, ELEM_DATA}:
        return None
    key, value = element_value(fields[ELEM_KEY]), element_value(fields[ELEM_DATA])
    whole = 4 + len(first)
    # Two headers stand between key and data; an element with more attributes is of another layout.
    if not value or len(items) % whole or 12 + len(key) + 8 + len(value) != whole:
        return None
    elements = struct.iter_unpack(f"12s{len(key)}s8s{len(value)}s", items)
    frame, between = bytes(items[:12]), bytes(items[12 + len(key) : 20 + len(key)])
    rows: dict[bytes, Value] = {
        key: value for start, key, middle, value in elements if start == frame and middle == between
    }
    return rows if len(rows) == len(items) // whole else None


def _unpack(fields: dict[int, memoryview]) -> Value:
    comment = _comment(fields[_ELEM_USERDATA]) if _ELEM_USERDATA in fields else ""
    if ELEM_DATA not in fields:
        return Tag("", comment) if comment else b""
    data = attribute_map(fields[ELEM_DATA])
    if _DATA_VALUE in data:
        return bytes(data[_DATA_VALUE])
    verdict = attribute_map(data.get(_DATA_VERDICT, NOTHING))
    if _VERDICT_CHAIN in verdict:
        return Tag(text(verdict[_VERDICT_CHAIN]), comment)
    return Tag(DROP, comment)


def _comment(userdata: memoryview) -> str:
    offset = 0
    while offset + 2 <= len(userdata):
        kind, size = userdata[offset], userdata[offset + 1]
        if kind == _COMMENT:
            return text(userdata[offset + 2 : offset + 2 + size])
        offset += 2 + size
    return ""


def element_value(data: memoryview) -> bytes:
    """Return an element's key or data; empty if it is a verdict."""
    return bytes(attribute_map(data).get(_DATA_VALUE, b""))


def _ranges(bounds: list[tuple[bytes, bool]]) -> dict[bytes, Value]:
    rows: dict[bytes, Value] = {}
    low: bytes | None = None
    # Where two ranges adjoin, an end marker has the key of the next start, and sorts before it.
    # nft, unlike pyproxy, also writes an end marker at key 0, which ends no range.
    for key, is_end in sorted(bounds, key=lambda bound: (bound[0], not bound[1])):
        if is_end and low is not None:
            # `key` sorts above `low` and has its length, so it is at least one.
            if len(key) == len(low):
                last = int.from_bytes(key, "big") - 1
                rows[low + last.to_bytes(len(key), "big")] = b""
            low = None
        elif not is_end:
            low = key
    if low is not None:
        rows[low + b"\xff" * len(low)] = b""
    return rows
