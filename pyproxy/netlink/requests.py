"""One netlink socket to a subsystem without transactions: many requests in one send, and dumps.

Facts: net/netlink/af_netlink.c. The kernel handles what is sent message by message while it is
being sent, so answers wait in the socket by the time `send` returns. Each message that fails is
answered with its sequence number; those before and after it are done all the same.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

import msgspec

from pyproxy.netlink.buffers import grow_receive, grow_send
from pyproxy.netlink.nfnetlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    Refusal,
    frames,
    kernel_error,
    read_refusal,
)

NETLINK_ROUTE = 0
NETLINK_GENERIC = 16

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_DUMP_INTR = 0x10
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_RECEIVE_BUFFER = 8 << 20
_RECEIVE_SIZE = 1 << 18
_SEND_BUFFER = 1 << 18
_CHUNK = 1 << 16
"""Bytes in one send: its answers, were all of them refusals, must fit in the receive buffer."""

_DUMP_ATTEMPTS = 10
_HEADER = struct.Struct("=IHHII")
HEADER_SIZE = _HEADER.size


class Request(msgspec.Struct, frozen=True):
    """A message before it has a sequence number; the body begins with the subsystem's header."""

    kind: int
    flags: int
    body: bytes


class Requests:
    """A netlink socket, with counts of what went through it."""

    def __init__(self, protocol: int) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
        except OSError as error:
            raise kernel_error(error.errno or 0, "opening a netlink socket") from error
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        grow_receive(self._socket, _RECEIVE_BUFFER)
        grow_send(self._socket, _SEND_BUFFER)
        self._socket.bind((0, 0))
        self._sequence = 0
        self.messages_sent = 0
        self.bytes_sent = 0

    @property
    def port(self) -> int:
        """The socket's own address, which the kernel names in notifications of what it did."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def send(self, requests: Sequence[Request]) -> list[Refusal]:
        """Send requests in their order; the refusals, by the number of the request.

        Raises KernelError when they could not be sent.
        """
        refusals: list[Refusal] = []
        begin, size = 0, 0
        for number, request in enumerate(requests):
            if size > _CHUNK:
                refusals += self._send_some(requests[begin:number], begin)
                begin, size = number, 0
            size += HEADER_SIZE + len(request.body)
        if requests:
            refusals += self._send_some(requests[begin:], begin)
        return refusals

    def ask(self, request: Request) -> list[memoryview]:
        """Ask for one thing; the bodies of the answers. Raises KernelError."""
        return self._asked(request, NLM_F_ACK)[0]

    def dump(self, request: Request) -> list[memoryview]:
        """Ask for everything of a kind; each answer's body.

        Raises KernelError, TransientKernelError where the kernel's tables kept changing meanwhile.
        """
        for _ in range(_DUMP_ATTEMPTS):
            answers, interrupted = self._asked(request, NLM_F_DUMP)
            if not interrupted:
                return answers
        raise kernel_error(errno.EINTR, "the kernel's tables changed during every dump")

    def _send_some(self, requests: Sequence[Request], offset: int) -> list[Refusal]:
        first = self._sequence + 1
        last = first + len(requests) - 1
        parts = []
        for sequence, request in enumerate(requests, first):
            flags = NLM_F_REQUEST | request.flags | (NLM_F_ACK if sequence == last else 0)
            parts.append(
                _HEADER.pack(HEADER_SIZE + len(request.body), request.kind, flags, sequence, 0)
            )
            parts.append(request.body)
            parts.append(b"\0" * (-len(request.body) % 4))
        self._sequence = last
        self._write(b"".join(parts))
        self.messages_sent += len(requests)
        refusals: list[Refusal] = []
        while True:
            for kind, flags, sequence, message in frames(self._read()):
                if kind != _NLMSG_ERROR or sequence < first:
                    continue
                refusal = read_refusal(message, flags, offset + sequence - first)
                if refusal:
                    refusals.append(refusal)
                if sequence == last:
                    return refusals

    def _asked(self, request: Request, how: int) -> tuple[list[memoryview], bool]:
        self._sequence += 1
        size = HEADER_SIZE + len(request.body)
        flags = NLM_F_REQUEST | how | request.flags
        head = _HEADER.pack(size, request.kind, flags, self._sequence, 0)
        self._write(head + request.body)
        answers: list[memoryview] = []
        interrupted = False
        while True:
            for kind, flags, sequence, message in frames(self._read()):
                if sequence != self._sequence:
                    continue
                interrupted |= bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_ERROR:
                    if refusal := read_refusal(message, flags, 0):
                        raise kernel_error(refusal.errno, refusal.words or "asking")
                    return answers, interrupted
                if kind == _NLMSG_DONE:
                    return answers, interrupted
                answers.append(message[HEADER_SIZE:])

    def _write(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise kernel_error(error.errno or 0, f"sending {len(data)} bytes") from error
        self.bytes_sent += len(data)

    def _read(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_SIZE)
        except OSError as error:
            raise kernel_error(error.errno or 0, "reading the kernel's answer") from error
