"""A netlink socket to a subsystem without transactions: many requests in one send, and dumps.

Facts: net/netlink/af_netlink.c. Each message that fails is acknowledged with its sequence number;
the messages before and after it are executed all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pyproxy.netlink.frames import HEADER, NLM_F_ACK, NLM_F_DUMP, pack_message
from pyproxy.netlink.kernel_errors import MessageError, read_acknowledgements
from pyproxy.netlink.sockets import SEND_BUFFER, NetlinkClient

_CHUNK = 1 << 16
"""Bytes in one send: its replies, if all of them are errors, must fit in the receive buffer."""


class Request(msgspec.Struct, frozen=True):
    """A message before it has a sequence number; the body begins with the subsystem's header."""

    kind: int
    flags: int
    body: bytes


class Requests(NetlinkClient):
    """A netlink socket to one of netlink's protocols, with counts of what went through it.

    `purpose` is quoted in error messages. All methods may block on the kernel.
    """

    def __init__(self, protocol: int, purpose: str = "kernel") -> None:
        super().__init__(protocol, purpose)
        self._socket.grow_send_buffer(SEND_BUFFER)

    def filter_dumps(self) -> None:
        """Have the kernel apply the fields of a dump's header as filters. Raises KernelError."""
        self._socket.filter_dumps()

    def send(self, requests: Sequence[Request]) -> list[MessageError]:
        """Send requests in order; return the errors of those that failed, with their index.

        Raises KernelError if they could not be sent.
        """
        errors: list[MessageError] = []
        begin, size = 0, 0
        # The kernel executes all of a send before `send` returns, so nothing empties the receive
        # buffer meanwhile: an acknowledgement that does not fit would be lost with ENOBUFS.
        for index, request in enumerate(requests):
            if size > _CHUNK:
                errors += self._send_chunk(requests[begin:index], begin)
                begin, size = index, 0
            size += HEADER.size + len(request.body)
        if requests:
            errors += self._send_chunk(requests[begin:], begin)
        return errors

    def get(self, request: Request) -> list[memoryview]:
        """Send a request for one object; return the replies' bodies. Raises KernelError."""
        return self._request(request, NLM_F_ACK)

    def dump(self, request: Request) -> list[memoryview]:
        """Send a request for all objects of a kind; return each reply's body.

        Raises KernelError, TransientKernelError if each of several dumps was interrupted.
        """
        return self._request(request, NLM_F_DUMP)

    def _request(self, request: Request, flags: int) -> list[memoryview]:
        replies = self._socket.request(lambda sequence: _pack(request, flags, sequence))
        return [reply[HEADER.size :] for reply in replies]

    def _send_chunk(self, requests: Sequence[Request], offset: int) -> list[MessageError]:
        first = self._socket.take_sequence(len(requests))
        last = first + len(requests) - 1
        # One acknowledgement at the end is enough: errors are always reported.
        self._socket.send(
            b"".join(
                _pack(request, NLM_F_ACK if sequence == last else 0, sequence)
                for sequence, request in enumerate(requests, first)
            )
        )
        self.messages_sent += len(requests)
        errors: list[MessageError] = []
        replies = iter(self._socket.receive, None)
        # This read may block: the last message is acknowledged even if it succeeded.
        for index, error in read_acknowledgements(replies, first, offset):
            if error is not None:
                errors.append(error)
            if index == offset + len(requests) - 1:
                break
        return errors


def _pack(request: Request, flags: int, sequence: int) -> bytes:
    return pack_message(request.kind, flags | request.flags, sequence, request.body)
