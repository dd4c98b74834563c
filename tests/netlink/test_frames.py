"""Messages are packed and read with netlink's header."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.netlink.frames import HEADER, NLM_F_REQUEST, pack_message, read_messages

MESSAGES = st.lists(
    st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=30)), max_size=6
)


@given(MESSAGES, st.integers(0, 20))
def test_messages_are_read_as_they_were_packed_until_one_is_cut_short(
    messages: list[tuple[int, int, bytes]], cut: int
) -> None:
    packed = [
        pack_message(kind, flags, sequence, body)
        for sequence, (kind, flags, body) in enumerate(messages)
    ]
    data = b"".join(packed)
    found = [
        (kind, flags, sequence, bytes(message[HEADER.size :]))
        for kind, flags, sequence, _, message in read_messages(data)
    ]
    assert found == [
        (kind, flags | NLM_F_REQUEST, sequence, body)
        for sequence, (kind, flags, body) in enumerate(messages)
    ]
    if messages and cut:
        last = len(messages[-1][2]) + HEADER.size
        short = data[: len(b"".join(packed[:-1])) + max(0, last - cut)]
        assert len(list(read_messages(short))) == len(messages) - 1
