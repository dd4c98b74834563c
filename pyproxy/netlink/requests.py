"""One netlink socket to a subsystem without transactions: many requests in one send, and dumps.

Facts: net/netlink/af_netlink.c. Each message that fails is answered with its sequence number; those
before and after it are done all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pyproxy.netlink.frames import (
    HEADER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    frames,
)
from pyproxy.netlink.kernel_errors import MessageError, read_error
from pyproxy.netlink.sockets import NetlinkSocket

_RECEIVE_BUFFER = 8 << 20
_SEND_BUFFER = 1 << 18
_CHUNK = 1 << 16
"""Bytes in one send: its answers, were all of them refusals, must fit in the receive buffer."""


class Request(msgspec.Struct, frozen=True):
    """A message before it has a sequence number; the body begins with the subsystem's header."""

    kind: int
    flags: int
    body: bytes


class Requests:
    """A netlink socket to one of netlink's protocols, with counts of what went through it."""

    def __init__(self, protocol: int) -> None:
        self._socket = NetlinkSocket(protocol, "kernel", _RECEIVE_BUFFER)
        self._socket.make_room(_SEND_BUFFER)
        self.messages_sent = 0

    @property
    def bytes_sent(self) -> int:
        """What all requests came to, with their headers."""
        return self._socket.bytes_sent

    @property
    def port(self) -> int:
        """The socket's own address, which the kernel names in notifications of what it did."""
        return self._socket.port

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def send(self, requests: Sequence[Request]) -> list[MessageError]:
        """Send requests in their order; the refusals, by the number of the request.

        Raises KernelError when they could not be sent.
        """
        refusals: list[MessageError] = []
        begin, size = 0, 0
        for number, request in enumerate(requests):
            if size > _CHUNK:
                refusals += self._send_some(requests[begin:number], begin)
                begin, size = number, 0
            size += HEADER.size + len(request.body)
        if requests:
            refusals += self._send_some(requests[begin:], begin)
        return refusals

    def ask(self, request: Request) -> list[memoryview]:
        """Ask for one thing; the bodies of the answers. Raises KernelError."""
        return self._ask(request, NLM_F_ACK)

    def dump(self, request: Request) -> list[memoryview]:
        """Ask for everything of a kind; each answer's body.

        Raises KernelError, TransientKernelError where the kernel's tables kept changing meanwhile.
        """
        return self._ask(request, NLM_F_DUMP)

    def _ask(self, request: Request, how: int) -> list[memoryview]:
        replies = self._socket.ask(lambda sequence: _framed(request, how, sequence))
        return [reply[HEADER.size :] for reply in replies]

    def _send_some(self, requests: Sequence[Request], offset: int) -> list[MessageError]:
        first = self._socket.number(len(requests))
        last = first + len(requests) - 1
        self._socket.send(
            b"".join(
                _framed(request, NLM_F_ACK if sequence == last else 0, sequence)
                for sequence, request in enumerate(requests, first)
            )
        )
        self.messages_sent += len(requests)
        refusals: list[MessageError] = []
        while True:
            for kind, flags, sequence, message in frames(self._socket.receive()):
                if kind != NLMSG_ERROR or sequence < first:
                    continue
                refusal = read_error(message, flags, offset + sequence - first)
                if refusal:
                    refusals.append(refusal)
                if sequence == last:
                    return refusals


def _framed(request: Request, how: int, sequence: int) -> bytes:
    size = HEADER.size + len(request.body)
    flags = NLM_F_REQUEST | how | request.flags
    head = HEADER.pack(size, request.kind, flags, sequence, 0)
    return head + request.body + b"\0" * (-size % 4)
