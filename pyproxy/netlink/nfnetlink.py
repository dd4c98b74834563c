"""One nfnetlink socket: batches that are committed whole, and dumps.

Facts: include/uapi/linux/netfilter/nfnetlink.h and net/netfilter/nfnetlink.c. A failing batch is
undone whole; each message that failed is answered with its sequence number, and with the offset of
the attribute at fault.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterator, Sequence

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
from pyproxy.netlink.sockets import NETLINK_NETFILTER, NetlinkSocket

log = logging.getLogger(__name__)

NFPROTO_UNSPEC = 0
NFPROTO_INET = 1
NFPROTO_IPV4 = 2
NFPROTO_IPV6 = 10

_NFNL_MSG_BATCH_BEGIN = 16
_NFNL_MSG_BATCH_END = 17

_RECEIVE_BUFFER = 8 << 20
_SEND_BUFFER = 1 << 18

_FAMILY = struct.Struct("=BBH")
HEADER_SIZE = HEADER.size + _FAMILY.size
"""The netlink header and the nfgenmsg that follows it."""


class Message(msgspec.Struct, frozen=True):
    """A request before it has a sequence number: subsystem and type, flags and attributes."""

    kind: int
    flags: int
    body: bytes
    family: int = NFPROTO_INET


class Nfnetlink:
    """A netlink socket to netfilter, with counts of what went through it."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(NETLINK_NETFILTER, "netfilter", _RECEIVE_BUFFER)
        self._largest = 0
        self.committed = 0
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

    def room(self, size: int) -> int:
        """Make room for a batch of `size` bytes; the bytes of the largest that may be sent."""
        if size > self._largest:
            self._largest = self._socket.make_room(max(size, _SEND_BUFFER))
        return self._largest

    def transact(self, messages: Sequence[Message], subsystem: int) -> list[MessageError]:
        """Send one batch; an empty list means that it was committed, anything else that it was not.

        What is larger than the socket may ever send goes in several batches, and those before the
        refused one have been committed. Raises KernelError when a batch could not be sent.
        """
        done = 0
        for batch in self._batches(messages):
            if refusals := self._transact(batch, subsystem):
                # The batch itself, and not one of its messages, goes by a number below 0.
                return [
                    msgspec.structs.replace(each, index=each.index + done * (each.index >= 0))
                    for each in refusals
                ]
            done += len(batch)
        return []

    def _batches(self, messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
        sizes = [HEADER_SIZE + len(message.body) for message in messages]
        room = self.room(sum(sizes) + 2 * HEADER_SIZE) - 2 * HEADER_SIZE
        begin, size = 0, 0
        for index, more in enumerate(sizes):
            if size + more > room and index > begin:
                yield messages[begin:index]
                begin, size = index, 0
            size += more
        if begin:
            log.warning(
                "%d bytes went to the kernel in parts: without CAP_NET_ADMIN on the host itself, "
                "net.core.wmem_max limits a transaction",
                sum(sizes),
            )
        if messages:
            yield messages[begin:]

    def _transact(self, messages: Sequence[Message], subsystem: int) -> list[MessageError]:
        first = self._socket.number(len(messages) + 1)
        edge = (NLM_F_REQUEST, first, b"", NFPROTO_UNSPEC, subsystem)
        parts = [_frame(_NFNL_MSG_BATCH_BEGIN, *edge)]
        last = len(messages) - 1
        for index, message in enumerate(messages):
            flags = NLM_F_REQUEST | message.flags | (NLM_F_ACK if index == last else 0)
            sequence = first + 1 + index
            parts.append(_frame(message.kind, flags, sequence, message.body, message.family))
        parts.append(_frame(_NFNL_MSG_BATCH_END, *edge))
        self._socket.send(b"".join(parts))
        self.messages_sent += len(messages)
        refusals = self._refusals(first)
        self.committed += not refusals
        return refusals

    def _refusals(self, first: int) -> list[MessageError]:
        found = (
            read_error(message, flags, sequence - first - 1)
            for data in self._socket.waiting()
            for kind, flags, sequence, message in frames(data)
            if kind == NLMSG_ERROR and sequence >= first
        )
        return [refusal for refusal in found if refusal is not None]

    def get(self, request: Message) -> memoryview:
        """Ask for one thing; the attributes of the answer. Raises KernelError."""
        replies = self._ask(request, NLM_F_ACK)
        return replies[-1] if replies else memoryview(b"")

    def ask(self, message: Message) -> MessageError | None:
        """Send one message to a subsystem that has no batches; None says that it was done.

        Raises KernelError when it could not be sent.
        """
        for _ in self._socket.waiting():  # what an earlier request left
            pass
        sequence = self._socket.number()
        self._socket.send(_framed(message, NLM_F_ACK, sequence))
        return next(iter(self._refusals(sequence - 1)), None)

    def dump(self, request: Message) -> Iterator[memoryview]:
        """Ask for everything of a kind; each answer's attributes.

        Raises KernelError, TransientKernelError where the kernel's tables kept changing meanwhile.
        """
        return iter(self._ask(request, NLM_F_DUMP))

    def _ask(self, request: Message, how: int) -> list[memoryview]:
        replies = self._socket.ask(lambda sequence: _framed(request, how, sequence))
        return [reply[HEADER_SIZE:] for reply in replies]


def _framed(request: Message, how: int, sequence: int) -> bytes:
    flags = NLM_F_REQUEST | how | request.flags
    return _frame(request.kind, flags, sequence, request.body, request.family)


def _frame(
    kind: int, flags: int, sequence: int, body: bytes, family: int, resource: int = 0
) -> bytes:
    # The resource id is the one field in network order.
    return (
        HEADER.pack(HEADER_SIZE + len(body), kind, flags, sequence, 0)
        + _FAMILY.pack(family, 0, socket.htons(resource))
        + body
    )
