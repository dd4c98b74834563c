"""Values with long fields, made and encoded part by part.

The whole of such a value, such as all Services with their endpoints, is larger than the agent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec

R = TypeVar("R", bound=msgspec.Struct)


class Listing(msgspec.Struct, Generic[R], frozen=True):
    """A value whose long fields are still to be made.

    `head` is the value with these fields empty. `fields` has, by name, the items of each: values or
    listings. `parts` has the fields that are one listing. A listing can be read once.
    """

    head: R
    fields: Mapping[str, Iterator[Any]]
    parts: Mapping[str, Listing[Any]] = {}

    def whole(self) -> R:
        """Make all items, and return the value."""
        made: dict[str, Any] = {
            name: tuple(each.whole() if isinstance(each, Listing) else each for each in items)
            for name, items in self.fields.items()
        }
        made |= {name: part.whole() for name, part in self.parts.items()}
        return msgspec.structs.replace(self.head, **made)

    def encoded(self) -> Iterator[bytes]:
        """Yield the value in JSON, in parts of one item or several short fields."""
        encode, found = msgspec.json.encode, bytearray()
        for name, key in _keys(type(self.head)):
            found += key
            if (items := self.fields.get(name)) is not None:
                yield from _array(items, found)
                found = bytearray()
            elif (part := self.parts.get(name)) is not None:
                yield bytes(found)
                yield from part.encoded()
                found = bytearray()
            else:
                found += encode(getattr(self.head, name))
        yield bytes(found + b"}")


@cache
def _keys(kind: type[msgspec.Struct]) -> tuple[tuple[str, bytes], ...]:
    """Return the name of each field, and its key in JSON with what precedes it."""
    return tuple(
        (field.name, (b"," if number else b"{") + msgspec.json.encode(field.encode_name) + b":")
        for number, field in enumerate(msgspec.structs.fields(kind))
    )


def encoded(value: msgspec.Struct) -> Iterator[bytes]:
    """Yield any value in JSON: a listing in parts, every other value at once."""
    if isinstance(value, Listing):
        yield from value.encoded()
    else:
        yield msgspec.json.encode(value)


def _array(items: Iterator[msgspec.Struct], before: bytes | bytearray) -> Iterator[bytes]:
    before = bytes(before) + b"["
    empty = True
    for item in items:
        if isinstance(item, Listing):
            yield before
            yield from item.encoded()
        else:
            yield before + msgspec.json.encode(item)
        before, empty = b",", False
    yield before + b"]" if empty else b"]"
