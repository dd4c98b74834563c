"""Elements packed as a whole are those packed attribute by attribute, and are read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.netlink.attributes import NESTED, attribute, nested, string
from pyproxy.netlink.elements import (
    DROP,
    Shape,
    Tag,
    Value,
    add_elements,
    delete_elements,
    read_elements,
)

ROWS = st.dictionaries(st.binary(min_size=1, max_size=40), st.binary(max_size=24), min_size=1)


def written_out(key: bytes, value: bytes) -> bytes:
    data = nested(2, attribute(1, value)) if value else b""
    return nested(1, nested(1, attribute(1, key)), data)


@given(ROWS)
def test_plain_elements_are_packed_as_attribute_by_attribute(rows: dict[bytes, bytes]) -> None:
    head = string(1, "table") + string(2, "set")
    added = b"".join(written_out(key, value) for key, value in rows.items())
    [message] = add_elements("table", "set", rows, Shape.EXACT)
    assert message.keys == tuple(rows)
    assert message.message.body == head + attribute(3 | NESTED, added)
    deleted = b"".join(written_out(key, b"") for key in rows)
    [message] = delete_elements("table", "set", rows, Shape.EXACT)
    assert message.message.body == head + attribute(3 | NESTED, deleted)


VALUES: st.SearchStrategy[Value] = st.one_of(
    st.just(b""),
    st.binary(min_size=8, max_size=8),
    st.builds(Tag, st.sampled_from(["cluster4-1", DROP]), st.sampled_from(["", "shop/web"])),
)


@given(st.dictionaries(st.binary(min_size=16, max_size=16), VALUES, min_size=1))
def test_packed_elements_are_read_back_uniform_or_not(rows: dict[bytes, Value]) -> None:
    for some in (rows, {key: value for key, value in rows.items() if isinstance(value, bytes)}):
        messages = add_elements("table", "set", some, Shape.EXACT)
        replies = [memoryview(each.message.body) for each in messages]
        assert read_elements(replies, Shape.EXACT) == some


@given(st.dictionaries(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)))
def test_elements_of_different_layouts_are_read_one_by_one(rows: dict[bytes, bytes]) -> None:
    body = b"".join(
        nested(1, nested(1, attribute(1, key)), nested(2, attribute(1 + index % 2, value)))
        for index, (key, value) in enumerate(rows.items())
    )
    found = read_elements([memoryview(attribute(3 | NESTED, body))], Shape.EXACT)
    assert found.keys() == rows.keys()
    assert all(found[key] == value for key, value in [*rows.items()][::2])
    assert all(isinstance(found[key], Tag) for key in [*rows][1::2])
