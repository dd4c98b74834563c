"""A WebSocket client (RFC 6455) on a connected socket, for subresources such as pods/exec.

A peer decides how much it sends and when, and a compromised node is such a peer. So a frame is
never held whole, however long it claims to be, and each wait ends at a deadline.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.message import Message

import msgspec

from pyproxy.errors import SourceError

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_LARGEST_HEAD = 16 << 10
_LARGEST_BODY = 8 << 10
_PART = 1 << 16
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_LARGEST_CONTROL = 125


class DeadlineError(SourceError):
    """The peer has not done its part in time."""


class HandshakeError(SourceError):
    """The server has not switched protocols: `status` is the HTTP status, `body` its beginning."""

    def __init__(self, message: str, status: int = 0, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class Deadline:
    """A time at which all waiting ends; `seconds` from now, None for never."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds
        self.seconds = seconds

    def left(self) -> float | None:
        """Return the seconds that are left, None for no end. Raises DeadlineError at the end."""
        if self._end is None:
            return None
        left = self._end - self._clock()
        if left <= 0:
            raise DeadlineError(f"no response within {self.seconds:g} s")
        return left

    def wait(self) -> float | None:
        """Return the seconds to wait in one system call. Raises DeadlineError at the end."""
        return self.left()


class Upgrade(msgspec.Struct, frozen=True):
    """The request that switches a connection to WebSocket; `target` is path and query."""

    host: str
    target: str
    protocols: Sequence[str]
    headers: Mapping[str, str]


class WebSocket:
    """Messages on one connection, by one thread at a time.

    The constructor sends the request. Raises HandshakeError, DeadlineError, OSError.
    """

    def __init__(self, sock: socket.socket, upgrade: Upgrade, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._buffer = bytearray()
        self.protocol = self._shake_hands(upgrade)
        """The subprotocol that the server has chosen."""

    def parts(self) -> Iterator[tuple[int, bytes]]:
        """Yield the messages in parts: the first byte of the message, and following bytes.

        Ends when the peer ends the connection in order. Raises SourceError, OSError.
        """
        first: int | None = None
        while True:
            final_and_opcode, masked_and_length = self._take(2)
            opcode, length = final_and_opcode & 15, masked_and_length & 127
            if masked_and_length & 128:
                raise SourceError("a server's WebSocket frame is masked")
            if opcode >= _CLOSE:
                if length > _LARGEST_CONTROL:
                    raise SourceError("a WebSocket control frame is too long")
                if not self._control(opcode, self._take(length)):
                    return
                continue
            if length >= 126:
                (length,) = struct.unpack(*(("!H", self._take(2)) if length == 126 else
                                            ("!Q", self._take(8))))  # fmt: skip
            if opcode != _CONTINUATION:
                first = None
            while length:
                part = self._take_some(length)
                length -= len(part)
                if first is None:
                    first, part = part[0], part[1:]
                if part:
                    yield first, part

    def send(self, data: bytes) -> None:
        """Send a binary message. Raises DeadlineError, OSError."""
        self._send(_BINARY, data)

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self._sock.close()

    def _control(self, opcode: int, data: bytes) -> bool:
        """Respond to a control frame; return False for the end of the connection."""
        if opcode == _PING:
            self._send(_PONG, data)
        elif opcode == _CLOSE:
            with contextlib.suppress(OSError):  # the peer may not wait for it
                self._send(_CLOSE, data[:2])
            return False
        return True

    def _send(self, opcode: int, data: bytes) -> None:
        size = len(data)
        head = bytes([0x80 | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 1 << 16:
            head += struct.pack("!BH", 0x80 | 126, size)
        else:
            head += struct.pack("!BQ", 0x80 | 127, size)
        # A client masks its data, so that no proxy on the way reads it as HTTP.
        mask = os.urandom(4)
        pad = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(data) ^ int.from_bytes(pad)).to_bytes(size)
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(head + mask + masked)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._receive()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _take_some(self, limit: int) -> bytes:
        """Take at least one byte, as many as there are."""
        if not self._buffer:
            self._receive()
        return self._take(min(limit, len(self._buffer)))

    def _receive(self) -> None:
        while True:
            self._sock.settimeout(self._deadline.wait())
            try:
                data = self._sock.recv(_PART)
                break
            except TimeoutError:  # the deadline raises DeadlineError if it has come
                continue
        if not data:
            raise SourceError("the connection was closed")
        self._buffer += data

    def _shake_hands(self, upgrade: Upgrade) -> str:
        key = base64.b64encode(os.urandom(16))
        lines = [f"GET {upgrade.target} HTTP/1.1", f"Host: {upgrade.host}"]
        lines += [f"{name}: {value}" for name, value in upgrade.headers.items()]
        lines += [
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key.decode()}",
            f"Sec-WebSocket-Protocol: {', '.join(upgrade.protocols)}",
        ]
        if any("\r" in line or "\n" in line for line in lines):
            raise HandshakeError("the request has a line break in a header")
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        status, headers = self._head()
        if status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            raise HandshakeError(f"HTTP status {status}", status, self._body(headers))
        expected = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        if headers.get("Sec-WebSocket-Accept", "").strip() != expected.decode():
            raise HandshakeError("the response is not that of a WebSocket server")
        chosen = headers.get("Sec-WebSocket-Protocol", "").strip()
        if chosen not in upgrade.protocols:
            raise HandshakeError(f"the server has chosen the subprotocol {chosen[:64]!r}")
        return chosen

    def _head(self) -> tuple[int, Message]:
        """Read the head of the response: its status and headers."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _LARGEST_HEAD:
                raise HandshakeError("the head of the response is too long")
            self._receive()
        head = self._take(end + 4)
        line, _, rest = head.partition(b"\r\n")
        version, status, *_ = [*line.split(b" ", 2), b"", b""]
        if not (version.startswith(b"HTTP/1.") and len(status) == 3 and status.isdigit()):
            raise HandshakeError("the response is not HTTP/1")
        try:
            return int(status), http.client.parse_headers(io.BytesIO(rest))
        except http.client.HTTPException as error:
            raise HandshakeError(f"the response is invalid: {type(error).__name__}") from None

    def _body(self, headers: Message) -> bytes:
        """Read the beginning of an error's body."""
        text = headers.get("Content-Length", "").strip()
        length = min(int(text[:9]), _LARGEST_BODY) if text.isascii() and text.isdigit() else 0
        try:
            return self._take(length)
        except (SourceError, OSError):
            return bytes(self._buffer)
