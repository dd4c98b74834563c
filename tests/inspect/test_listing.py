"""Listings: encoded part by part, they are the JSON of the whole value."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from pyproxy.inspect.listing import Listing, encoded


class Part(msgspec.Struct, frozen=True, rename="camel"):
    part_name: str
    items: tuple[int, ...] = ()


class Whole(msgspec.Struct, frozen=True):
    name: str
    parts: tuple[Part, ...]
    middle: int
    one: Part
    last: tuple[Part, ...] = ()


def listing(parts: int) -> Listing[Whole]:
    made = (Listing(Part(f"p{n}"), {"items": iter(range(n))}) for n in range(parts))
    one = Listing(Part("one"), {"items": iter((1, 2))})
    head = Whole('a "parts":[] b', (), 3, Part(""))
    return Listing(head, {"parts": made, "last": iter((Part("z"),))}, {"one": one})


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_the_parts_are_the_json_of_the_whole_value(parts: int) -> None:
    whole = listing(parts).whole()
    assert [len(part.items) for part in whole.parts] == list(range(parts))
    assert b"".join(encoded(listing(parts))) == msgspec.json.encode(whole)


def test_items_are_made_one_by_one() -> None:
    made = list[int]()

    def items() -> Iterator[Part]:
        for number in range(100):
            made.append(number)
            yield Part(str(number))

    parts = encoded(Listing(Whole("", (), 0, Part("")), {"last": items()}))
    for _ in range(5):
        next(parts)
    assert len(made) <= 5
