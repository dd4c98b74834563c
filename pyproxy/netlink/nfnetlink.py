"""One nfnetlink socket: batches that are committed whole, and dumps.

Facts: include/uapi/linux/netfilter/nfnetlink.h and net/netfilter/nfnetlink.c. The kernel handles a
batch while it is being sent, so its answers wait in the socket by the time `send` returns. A
failing batch is undone whole; each message that failed is answered with its sequence number, and
with the offset of the attribute at fault.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Iterator, Sequence

import msgspec

from pyproxy.errors import (
    KernelError,
    OutOfStepError,
    PermissionKernelError,
    RejectedError,
    TransientKernelError,
)
from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.buffers import grow_receive, grow_send

log = logging.getLogger(__name__)

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_EXCL = 0x200

NFPROTO_UNSPEC = 0
NFPROTO_INET = 1
NFPROTO_IPV4 = 2
NFPROTO_IPV6 = 10

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_DUMP_INTR = 0x10
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_NLMSGERR_ATTR_OFFS = 2
_NFNL_MSG_BATCH_BEGIN = 16
_NFNL_MSG_BATCH_END = 17

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_RECEIVE_BUFFER = 8 << 20
_SEND_BUFFER = 1 << 18
_RECEIVE_SIZE = 1 << 18
_DUMP_ATTEMPTS = 10

_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct("=BBH")
HEADER_SIZE = _HEADER.size + _FAMILY.size
"""The netlink header and the nfgenmsg that follows it."""

_TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.EBUSY, errno.ENOMEM}
_OUT_OF_STEP = {errno.ENOENT, errno.EEXIST, errno.ESRCH}
_FORBIDDEN = {errno.EPERM, errno.EACCES}


class Message(msgspec.Struct, frozen=True):
    """A request before it has a sequence number: subsystem and type, flags and attributes."""

    kind: int
    flags: int
    body: bytes
    family: int = NFPROTO_INET


class Refusal(msgspec.Struct, frozen=True):
    """The kernel's word on one message of a batch.

    `index` is the message's place in the batch, -1 for the batch itself; `offset` is where in its
    bytes the attribute at fault begins, 0 where the kernel did not say.
    """

    index: int
    errno: int
    offset: int
    words: str

    @property
    def error(self) -> KernelError:
        """The refusal as an exception of the kind that tells what to do about it."""
        return kernel_error(self.errno, self.words)


def kernel_error(number: int, doing: str) -> KernelError:
    """Translate an errno, once, where the system call was made."""
    name = errno.errorcode.get(number, str(number))
    message = f"{name}: {doing}" if doing else name
    if number in _TRANSIENT:
        return TransientKernelError(message, number)
    if number in _OUT_OF_STEP:
        return OutOfStepError(message, number)
    if number in _FORBIDDEN:
        return PermissionKernelError(message, number)
    return RejectedError(message, number)


class Nfnetlink:
    """A netlink socket to netfilter, with counts of what went through it."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
        except OSError as error:
            raise kernel_error(error.errno or 0, "opening a netfilter netlink socket") from error
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        grow_receive(self._socket, _RECEIVE_BUFFER)
        self._socket.bind((0, 0))
        self._largest = 0
        self._sequence = 0
        self.committed = 0
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

    def transact(self, messages: Sequence[Message], subsystem: int) -> list[Refusal]:
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
        room = self._room(sum(sizes) + 2 * HEADER_SIZE) - 2 * HEADER_SIZE
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

    def _transact(self, messages: Sequence[Message], subsystem: int) -> list[Refusal]:
        first = self._sequence + 1
        edge = (NLM_F_REQUEST, first, b"", NFPROTO_UNSPEC, subsystem)
        parts = [_frame(_NFNL_MSG_BATCH_BEGIN, *edge)]
        last = len(messages) - 1
        for index, message in enumerate(messages):
            flags = NLM_F_REQUEST | message.flags | (NLM_F_ACK if index == last else 0)
            sequence = first + 1 + index
            parts.append(_frame(message.kind, flags, sequence, message.body, message.family))
        parts.append(_frame(_NFNL_MSG_BATCH_END, *edge))
        self._sequence = first + len(messages)
        self._send(b"".join(parts))
        self.messages_sent += len(messages)
        refusals = self._refusals(first)
        self.committed += not refusals
        return refusals

    def get(self, request: Message) -> memoryview:
        """Ask for one thing; the attributes of the answer. Raises KernelError."""
        self._drain()
        self._sequence += 1
        flags = NLM_F_REQUEST | NLM_F_ACK | request.flags
        self._send(_frame(request.kind, flags, self._sequence, request.body, request.family))
        answer = memoryview(b"")
        while data := self._receive(socket.MSG_DONTWAIT):
            for kind, _, sequence, message in frames(data):
                if sequence != self._sequence:
                    continue
                if kind != _NLMSG_ERROR:
                    answer = message[HEADER_SIZE:]
                elif code := _code(message):
                    raise kernel_error(code, "asking")
        return answer

    def ask(self, message: Message) -> Refusal | None:
        """Send one message to a subsystem that has no batches; None says that it was done.

        Raises KernelError when it could not be sent.
        """
        self._drain()
        self._sequence += 1
        flags = NLM_F_REQUEST | NLM_F_ACK | message.flags
        self._send(_frame(message.kind, flags, self._sequence, message.body, message.family))
        return next(iter(self._refusals(self._sequence - 1)), None)

    def dump(self, request: Message) -> Iterator[memoryview]:
        """Ask for everything of a kind; each answer's attributes.

        Raises KernelError, TransientKernelError where the kernel's tables kept changing meanwhile.
        """
        for _ in range(_DUMP_ATTEMPTS):
            answers, interrupted = self._dump_once(request)
            if not interrupted:
                return iter(answers)
        raise kernel_error(errno.EINTR, "the kernel's tables changed during every dump")

    def _dump_once(self, request: Message) -> tuple[list[memoryview], bool]:
        self._drain()
        self._sequence += 1
        self._send(
            _frame(
                request.kind,
                NLM_F_REQUEST | NLM_F_DUMP | request.flags,
                self._sequence,
                request.body,
                request.family,
            )
        )
        answers: list[memoryview] = []
        interrupted = False
        while True:
            for kind, flags, sequence, message in frames(self._receive()):
                if sequence != self._sequence:
                    continue
                interrupted |= bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_ERROR:
                    code = _code(message)
                    if code == errno.EINTR:
                        return [], True
                    raise kernel_error(code, "dumping")
                if kind == _NLMSG_DONE:
                    return answers, interrupted
                answers.append(message[HEADER_SIZE:])

    def _room(self, size: int) -> int:
        if size > self._largest:
            self._largest = grow_send(self._socket, max(size, _SEND_BUFFER))
        return self._largest

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise kernel_error(error.errno or 0, f"sending {len(data)} bytes") from error
        self.bytes_sent += len(data)

    def _receive(self, flags: int = 0) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_SIZE, flags)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise kernel_error(error.errno or 0, "reading the kernel's answer") from error

    def _drain(self) -> None:
        while self._receive(socket.MSG_DONTWAIT):
            pass

    def _refusals(self, first: int) -> list[Refusal]:
        refusals = []
        while data := self._receive(socket.MSG_DONTWAIT):
            for kind, flags, sequence, message in frames(data):
                if kind == _NLMSG_ERROR and sequence >= first:
                    refusal = read_refusal(message, flags, sequence - first - 1)
                    if refusal:
                        refusals.append(refusal)
        return refusals


def frames(data: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """Walk over netlink messages as (type, flags, sequence number, the message with its header).

    What is cut short ends the walk.
    """
    view = memoryview(data)
    offset = 0
    while offset + _HEADER.size <= len(view):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(view, offset)
        if length < _HEADER.size or offset + length > len(view):
            return
        yield kind, flags, sequence, view[offset : offset + length]
        offset += (length + 3) & ~3


def _code(answer: memoryview) -> int:
    """Read the errno of an NLMSG_ERROR, 0 where it acknowledges; EINVAL where it says none."""
    if len(answer) < _HEADER.size + 4:
        return errno.EINVAL
    code: int = -struct.unpack_from("=i", answer, _HEADER.size)[0]
    return code


def read_refusal(answer: memoryview, flags: int, index: int) -> Refusal | None:
    """Read an NLMSG_ERROR about the message at `index` of a batch; None where it acknowledges."""
    code = _code(answer)
    if code == 0:
        return None
    offset, words = 0, ""
    if flags & _NLM_F_ACK_TLVS:
        start = _HEADER.size + 4 + _HEADER.size
        if not flags & _NLM_F_CAPPED and len(answer) >= start:
            start += struct.unpack_from("=I", answer, _HEADER.size + 4)[0] - _HEADER.size
        said = attribute_map(answer[start:])
        if len(said.get(_NLMSGERR_ATTR_OFFS, b"")) >= 4:
            offset = struct.unpack_from("=I", said[_NLMSGERR_ATTR_OFFS])[0]
        if _NLMSGERR_ATTR_MSG in said:
            words = text(said[_NLMSGERR_ATTR_MSG])
    return Refusal(index, code, offset, words)


def _frame(
    kind: int, flags: int, sequence: int, body: bytes, family: int, resource: int = 0
) -> bytes:
    # The resource id is the one field in network order.
    return (
        _HEADER.pack(HEADER_SIZE + len(body), kind, flags, sequence, 0)
        + _FAMILY.pack(family, 0, socket.htons(resource))
        + body
    )
