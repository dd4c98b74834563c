"""Frames of SPDY: what is written can be read, whatever the pieces; what is wrong is an error."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproxy_lab.apiserver import spdy
from pyproxy_lab.apiserver.spdy import DICTIONARY, Frame, Framer, Kind, SpdyError

SYN_STREAM = 0x80030001


def syn_stream(stream: int, headers: dict[str, str]) -> bytes:
    """Write a SYN_STREAM as the first one of a client."""
    block = struct.pack(">I", len(headers))
    for text in (part for pair in headers.items() for part in pair):
        block += struct.pack(">I", len(text)) + text.encode()
    deflate = zlib.compressobj(zdict=DICTIONARY)
    block = deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH)
    body = struct.pack(">IIH", stream, 0, 0) + block
    return struct.pack(">II", SYN_STREAM, len(body)) + body


def test_the_dictionary_is_that_of_the_protocol() -> None:
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


def test_a_stream_opens_with_its_headers() -> None:
    headers = {"streamtype": "data", "port": "80", "requestid": "0"}
    (frame,) = Framer().feed(syn_stream(3, headers))
    assert (frame.kind, frame.stream, frame.headers) == (Kind.SYN_STREAM, 3, headers)


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 7))
def test_data_arrive_whole_in_any_pieces(payloads: list[bytes], size: int) -> None:
    raw = b"".join(spdy.data(5, each) for each in payloads) + spdy.data(5, b"", end=True)
    framer = Framer()
    frames: list[Frame] = []
    for start in range(0, len(raw), size):
        frames += framer.feed(raw[start : start + size])
    assert [frame.data for frame in frames] == [*payloads, b""]
    assert [frame.end for frame in frames] == [False] * len(payloads) + [True]


def test_a_reply_is_a_frame_that_a_client_reads() -> None:
    (frame,) = Framer().feed(Framer().reply(7))
    assert (frame.kind, frame.stream) == (Kind.SYN_REPLY, 7)


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack(">II", SYN_STREAM, 14) + bytes(10) + b"junk",
        struct.pack(">II", 0x80030063, 4) + bytes(4),
        struct.pack(">II", 0x80030006, 0),
        struct.pack(">II", 5, 0xFFFFFF),
    ],
    ids=["headers", "unknown type", "too short", "too large"],
)
def test_what_is_no_frame_is_an_error(raw: bytes) -> None:
    with pytest.raises(SpdyError):
        list(Framer().feed(raw))
