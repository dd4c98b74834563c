"""An nfnetlink socket: batches that the kernel commits as a whole, and dumps.

Facts: include/uapi/linux/netfilter/nfnetlink.h and net/netfilter/nfnetlink.c. A failing batch is
undone as a whole. Each message that failed is acknowledged with its sequence number, and with the
offset of the attribute at fault.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from pyproxy.netlink.frames import HEADER, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, pack_message
from pyproxy.netlink.kernel_errors import MessageError, read_acknowledgements
from pyproxy.netlink.sockets import NETLINK_NETFILTER, SEND_BUFFER, NetlinkClient

log = logging.getLogger(__name__)

NFPROTO_UNSPEC = 0
NFPROTO_INET = 1
NFPROTO_IPV4 = 2
NFPROTO_IPV6 = 10

_NFNL_MSG_BATCH_BEGIN = 16
_NFNL_MSG_BATCH_END = 17

_NFGENMSG = struct.Struct("=BBH")
_BOTH_HEADERS = struct.Struct("=IHHIIBBH")
HEADER_SIZE = HEADER.size + _NFGENMSG.size
"""Bytes of the netlink header and of the nfgenmsg that follows it."""


class Message(msgspec.Struct, frozen=True):
    """A request before it has a sequence number: subsystem and type, flags and attributes."""

    kind: int
    flags: int
    body: bytes
    family: int = NFPROTO_INET


class PackedBatch(msgspec.Struct, frozen=True):
    """A batch as it is sent: its bytes, its own sequence number, and how many messages it has."""

    data: bytes
    first: int
    messages: int


class Nfnetlink(NetlinkClient):
    """A netlink socket to netfilter, with counts of what went through it.

    All methods may block on the kernel; one thread may use it at a time.
    """

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER, "netfilter")
        self._largest = 0
        # Callers compare it with nf_tables' generation, which a commit without a change leaves, and
        # add the transactions of programs that they run.
        self.committed = 0

    def grow_send_buffer(self, size: int) -> int:
        """Make room for a batch of `size` bytes; return how large a batch may be."""
        if size > self._largest:
            self._largest = self._socket.grow_send_buffer(max(size, SEND_BUFFER))
        return self._largest

    def transact(self, messages: Sequence[Message], subsystem: int) -> list[MessageError]:
        """Send one batch; return its errors. The batch is committed if there are none.

        Messages that exceed the send buffer go in several batches. The batches before the
        one that failed stay committed. Raises KernelError if a batch could not be sent.
        """
        done = 0
        for batch in self._batches(messages):
            first = self._socket.take_sequence(len(batch) + 1)
            if errors := self.send_packed(_packed(batch, first, subsystem)):
                # An index below 0 is the batch itself, not one of its messages.
                return [
                    msgspec.structs.replace(each, index=each.index + done * (each.index >= 0))
                    for each in errors
                ]
            done += len(batch)
        return []

    def pack_ahead(
        self, batches: Iterable[Sequence[Message]], most: int, subsystem: int
    ) -> Iterator[Sequence[PackedBatch]]:
        """Yield each batch packed, in several parts if it exceeds the send buffer.

        There are at most `most` messages. The iterator may be used in another thread than the one
        that sends.
        """
        # Taken now, because only the thread that sends may use the socket. A part takes one more
        # than it has messages.
        return self._pack_ahead(batches, self._socket.take_sequence(2 * most), subsystem)

    def _pack_ahead(
        self, batches: Iterable[Sequence[Message]], first: int, subsystem: int
    ) -> Iterator[Sequence[PackedBatch]]:
        for messages in batches:
            packed: list[PackedBatch] = []
            for part in self._batches(messages):
                packed.append(_packed(part, first, subsystem))
                first += len(part) + 1
            yield packed

    def send_packed(self, batch: PackedBatch) -> list[MessageError]:
        """Send a packed batch; return its errors. Raises KernelError if it could not be sent."""
        self._socket.send(batch.data)
        self.messages_sent += batch.messages
        # The kernel reports a failed commit with the header of the batch's begin.
        # The batch's own sequence number is one below that of its first message.
        errors = self._read_errors(batch.first, -1)
        self.committed += not errors
        return errors

    # A batch is one send: the kernel aborts a batch whose end is not in the same datagram.
    def _batches(self, messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
        sizes = [HEADER_SIZE + len(message.body) for message in messages]
        room = self.grow_send_buffer(sum(sizes) + 2 * HEADER_SIZE) - 2 * HEADER_SIZE
        begin, size = 0, 0
        for index, more in enumerate(sizes):
            if size + more > room and index > begin:
                yield messages[begin:index]
                begin, size = index, 0
            size += more
        if begin:
            log.warning(
                "sent %d bytes in several transactions: net.core.wmem_max limits the send buffer "
                "without CAP_NET_ADMIN in the initial user namespace",
                sum(sizes),
            )
        if messages:
            yield messages[begin:]

    def _read_errors(self, first: int, index: int = 0) -> list[MessageError]:
        # No need to block: the kernel has processed the batch when `send` returns.
        replies = read_acknowledgements(self._socket.receive_waiting(), first, index)
        return [error for _, error in replies if error is not None]

    def send(self, message: Message) -> MessageError | None:
        """Send one message to a subsystem that has no batches; return its error if it failed.

        Raises KernelError if it could not be sent.
        """
        for _ in self._socket.receive_waiting():  # discard replies to an earlier request
            pass
        sequence = self._socket.take_sequence()
        self._socket.send(_pack(message, NLM_F_ACK, sequence))
        return next(iter(self._read_errors(sequence)), None)

    def get(self, request: Message) -> memoryview:
        """Send a request for one object; return its attributes. Raises KernelError."""
        replies = self._request(request, NLM_F_ACK)
        return replies[-1] if replies else memoryview(b"")

    def send_requests(self, requests: Sequence[Message]) -> None:
        """Send requests in one system call; their replies, as many as fit, wait in the socket.

        Raises KernelError.
        """
        for _ in self._socket.receive_waiting():  # discard replies to earlier requests
            pass
        first = self._socket.take_sequence(len(requests))
        packed = [_pack(each, 0, sequence) for sequence, each in enumerate(requests, first)]
        data = b"".join(packed)
        self.grow_send_buffer(len(data))
        self._socket.send(data)

    def dump(self, request: Message, *, consistent: bool = True) -> Iterator[memoryview]:
        """Send a request for all objects of a kind; return each reply's attributes.

        Unless it is to be `consistent`, a dump that was interrupted by a change counts too: some
        objects may be missing or come twice. Raises KernelError, TransientKernelError if each of
        several dumps was interrupted.
        """
        return iter(self._request(request, NLM_F_DUMP, consistent=consistent))

    def _request(
        self, request: Message, flags: int, *, consistent: bool = True
    ) -> list[memoryview]:
        replies = self._socket.request(
            lambda sequence: _pack(request, flags, sequence), consistent=consistent
        )
        return [reply[HEADER_SIZE:] for reply in replies]


def _packed(messages: Sequence[Message], first: int, subsystem: int) -> PackedBatch:
    # The resource id, here the subsystem, is the one field in network order.
    edge = _NFGENMSG.pack(NFPROTO_UNSPEC, 0, socket.htons(subsystem))
    parts = [pack_message(_NFNL_MSG_BATCH_BEGIN, 0, first, edge)]
    last = len(messages) - 1
    for index, message in enumerate(messages):
        parts.append(_pack(message, NLM_F_ACK if index == last else 0, first + 1 + index))
    parts.append(pack_message(_NFNL_MSG_BATCH_END, 0, first, edge))
    return PackedBatch(b"".join(parts), first, len(messages))


def batch_size(messages: Sequence[Message]) -> int:
    """Return the bytes that a batch of these messages takes."""
    return sum(HEADER_SIZE + len(each.body) for each in messages) + 2 * HEADER_SIZE


def pack_family(family: int) -> bytes:
    """Pack the nfgenmsg that every message of nfnetlink begins with, of an address family."""
    return _NFGENMSG.pack(family, 0, 0)


def _pack(request: Message, flags: int, sequence: int) -> bytes:
    # A first sync packs 150,000 messages: both headers at once take half the time.
    kind, own_flags, body, family = request.kind, request.flags, request.body, request.family
    size = HEADER_SIZE + len(body)
    flags |= own_flags | NLM_F_REQUEST
    head = _BOTH_HEADERS.pack(size, kind, flags, sequence, 0, family, 0, 0)
    return b"".join((head, body, b"\0" * (-size % 4)))
