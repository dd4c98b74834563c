"""Elements packed by the frame that all of a set share are those packed attribute by attribute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.netlink.attributes import NESTED, attribute, nested, string
from pyproxy.netlink.nftables import Shape, add_elements, delete_elements

ROWS = st.dictionaries(st.binary(min_size=1, max_size=40), st.binary(max_size=24), min_size=1)


def written_out(key: bytes, value: bytes) -> bytes:
    data = nested(2, attribute(1, value)) if value else b""
    return nested(1, nested(1, attribute(1, key)), data)


@given(ROWS)
def test_plain_elements(rows: dict[bytes, bytes]) -> None:
    head = string(1, "table") + string(2, "set")
    added = b"".join(written_out(key, value) for key, value in rows.items())
    [message] = add_elements("table", "set", rows, Shape.EXACT)
    assert message.keys == tuple(rows)
    assert message.message.body == head + attribute(3 | NESTED, added)
    deleted = b"".join(written_out(key, b"") for key in rows)
    [message] = delete_elements("table", "set", rows, Shape.EXACT)
    assert message.message.body == head + attribute(3 | NESTED, deleted)
