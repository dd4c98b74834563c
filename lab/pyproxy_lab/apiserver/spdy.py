"""Frames of SPDY/3.1, as far as `kubectl port-forward` sends them.

Facts: the SPDY protocol, draft 3.1. Frames are bounded; there is no flow control, since kubectl's
library has none.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator, Mapping

import msgspec

_VERSION = 3
_CONTROL = 0x8000
FIN = 0x01

_LARGEST_FRAME = 1 << 20
_LARGEST_HEADERS = 1 << 16

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language "
    "accept-ranges age allow authorization cache-control connection content-base "
    "content-encoding content-language content-length content-location content-md5 "
    "content-range content-type date etag expect expires from host if-match if-modified-since "
    "if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer "
    "transfer-encoding upgrade user-agent vary via warning www-authenticate method get status "
    "200_OK version HTTP/1.1 url public set-cookie keep-alive origin"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age="
    "gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _counted(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">I", len(raw)) + raw


DICTIONARY = b"".join(_counted(word.replace("_", " ")) for word in _WORDS.split()) + _TAIL.encode()
"""The dictionary with which both ends compress headers."""


class SpdyError(Exception):
    """The peer sent bytes that are no frame of this protocol."""


class Kind(enum.IntEnum):
    """The types of frames; DATA is none of the control frames' numbers."""

    DATA = 0
    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Frame(msgspec.Struct, frozen=True):
    """A frame: `data` is a data frame's payload or a ping's, `headers` a SYN_STREAM's."""

    kind: Kind
    stream: int
    end: bool = False
    data: bytes = b""
    headers: Mapping[str, str] = {}


class Framer:
    """Splits the bytes of one connection into frames, and writes frames as bytes."""

    def __init__(self) -> None:
        self._rest = b""
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Return the frames that are whole with these bytes. Raises SpdyError."""
        self._rest += data
        while len(self._rest) >= 8:
            first, second, length = struct.unpack(">HHI", self._rest[:8])
            flags, length = length >> 24, length & 0xFFFFFF
            if length > _LARGEST_FRAME:
                raise SpdyError(f"a frame of {length} bytes")
            if len(self._rest) < 8 + length:
                return
            body, self._rest = self._rest[8 : 8 + length], self._rest[8 + length :]
            if first & _CONTROL:
                yield from self._control(second, flags, body)
            else:
                yield Frame(Kind.DATA, first << 16 | second, bool(flags & FIN), body)

    def _control(self, number: int, flags: int, body: bytes) -> Iterator[Frame]:
        if number not in set(Kind):
            raise SpdyError(f"a control frame of type {number}")
        kind = Kind(number)
        if len(body) < 4:
            raise SpdyError(f"{kind.name}: {len(body)} bytes")
        stream = struct.unpack(">I", body[:4])[0] & 0x7FFFFFFF
        # All compressed blocks must be read: each depends on those before it.
        offset = {Kind.SYN_STREAM: 10, Kind.SYN_REPLY: 4, Kind.HEADERS: 4}.get(kind)
        headers = self._headers(body[offset:]) if offset else {}
        yield Frame(kind, stream, bool(flags & FIN), body, headers)

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._inflate.decompress(block, _LARGEST_HEADERS)
        except zlib.error as error:
            raise SpdyError(f"headers: {error}") from error
        if self._inflate.unconsumed_tail:
            raise SpdyError("headers: too large")
        texts: list[str] = []
        position = 4
        while position + 4 <= len(plain):
            (length,) = struct.unpack(">I", plain[position : position + 4])
            texts.append(plain[position + 4 : position + 4 + length].decode(errors="replace"))
            position += 4 + length
        return dict(zip(texts[::2], texts[1::2], strict=False))

    def reply(self, stream: int) -> bytes:
        """Accept a stream, without headers."""
        block = self._deflate.compress(struct.pack(">I", 0))
        block += self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return _frame(Kind.SYN_REPLY, struct.pack(">I", stream) + block)


def data(stream: int, payload: bytes, *, end: bool = False) -> bytes:
    """Write a data frame."""
    return struct.pack(">II", stream, (FIN if end else 0) << 24 | len(payload)) + payload


def ping(payload: bytes) -> bytes:
    """Return a ping to its sender."""
    return _frame(Kind.PING, payload[:4])


def _frame(kind: Kind, body: bytes) -> bytes:
    return struct.pack(">HHI", _CONTROL | _VERSION, kind, len(body)) + body
