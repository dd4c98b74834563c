"""Frames of a WebSocket server, valid and random: messages are whole, errors of one kind."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.errors import SourceError
from pyproxy.source.websocket import Deadline, DeadlineError, WebSocket

Message = tuple[int, Sequence[bytes]]
"""The channel of a message, and its frames."""

MESSAGES = st.lists(
    st.tuples(st.integers(0, 255), st.lists(st.binary(max_size=300), min_size=1, max_size=4)),
    max_size=6,
)


class Recorded(socket.socket):
    """A socket whose peer has sent `data` in pieces of `size` bytes, and closed."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__()
        self.data = data
        self.size = size
        self.sent = b""

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        part, self.data = self.data[: self.size], self.data[self.size :]
        return part

    def sendall(self, data: bytes, flags: int = 0) -> None:  # type: ignore[override]
        self.sent += data


def frame(opcode: int, data: bytes, *, final: bool = True) -> bytes:
    size = len(data)
    length = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size)
    return bytes([opcode | (0x80 if final else 0)]) + length + data


def frames(message: Message) -> bytes:
    """Encode a message in its frames, with a ping after each."""
    channel, parts = message
    whole = [bytes([channel]) + parts[0], *parts[1:]]
    return b"".join(
        frame(0 if number else 2, part, final=number == len(whole) - 1) + frame(9, b"p")
        for number, part in enumerate(whole)
    )


def opened(data: bytes, size: int) -> WebSocket:
    """Return a WebSocket after its handshake."""
    made = WebSocket.__new__(WebSocket)
    made._sock = Recorded(data, size)
    made._deadline = Deadline(None)
    made._buffer = bytearray()
    return made


@given(MESSAGES, st.integers(1, 700))
def test_messages_arrive_whole_however_they_are_cut(messages: list[Message], size: int) -> None:
    received: dict[int, bytes] = {}
    web_socket = opened(b"".join(map(frames, messages)) + frame(8, b""), size)
    for channel, part in web_socket.parts():
        received[channel] = received.get(channel, b"") + part
    expected: dict[int, bytes] = {}
    for channel, parts in messages:
        if joined := b"".join(parts):
            expected[channel] = expected.get(channel, b"") + joined
    assert received == expected
    web_socket.close()


@settings(max_examples=300)
@given(st.binary(max_size=600), st.integers(1, 100))
def test_random_bytes_end_or_are_an_error(data: bytes, size: int) -> None:
    web_socket = opened(data, size)
    with suppress(SourceError):
        total = sum(len(part) for _, part in web_socket.parts())
        assert total <= len(data)
    web_socket.close()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_sent_messages_are_masked(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    web_socket = opened(b"", 1)
    web_socket.send(data[:size])
    sock = web_socket._sock
    assert isinstance(sock, Recorded)
    sent = sock.sent
    assert (sent[0], sent[1] & 128) == (0x82, 128)
    head = {126: 4, 127: 10}.get(sent[1] & 127, 2)
    mask, masked = sent[head : head + 4], sent[head + 4 :]
    assert bytes(each ^ mask[at % 4] for at, each in enumerate(masked)) == data[:size]
    web_socket.close()


def test_a_deadline_ends_once() -> None:
    now = [0.0]
    deadline = Deadline(5.0, lambda: now[0])
    assert deadline.left() == 5.0
    now[0] = 4.5
    assert deadline.left() == 0.5
    now[0] = 5.0
    with pytest.raises(DeadlineError, match="no response within 5 s"):
        deadline.left()
