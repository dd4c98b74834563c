"""A netlink socket: its options, its buffers, and errno translated where a call is made.

Facts: net/netlink/af_netlink.c. The kernel handles what is sent message by message while it is
being sent, so answers wait in the socket by the time `send` returns.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator

from pyproxy.errors import KernelError
from pyproxy.netlink.buffers import grow_receive, grow_send
from pyproxy.netlink.frames import NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, frames
from pyproxy.netlink.kernel_errors import kernel_error, read_error

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NETLINK_GENERIC = 16

_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 1, 2
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 10, 11
_RECEIVE_SIZE = 1 << 18
_DUMP_ATTEMPTS = 10


class NetlinkSocket:
    """A socket to one netlink protocol of the network namespace that it is made in.

    `purpose` stands in the errors: "netfilter" or "conntrack". Raises KernelError, as all its
    methods do.
    """

    def __init__(self, protocol: int, purpose: str, room: int, groups: int = 0) -> None:
        self._purpose = purpose
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
            # What a request said is not sent back with its refusal, and why it failed is.
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            grow_receive(self._socket, room)
            self._socket.bind((0, groups))
        except OSError as error:
            raise kernel_error(error.errno or 0, f"opening a {purpose} netlink socket") from error
        self._sequence = 0
        self.bytes_sent = 0

    @property
    def port(self) -> int:
        """The socket's own address, which the kernel names in notifications of what it did."""
        port: int = self._socket.getsockname()[0]
        return port

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def join(self, group: int) -> None:
        """Hear a group's notifications from now on."""
        self._set(_ADD_MEMBERSHIP, group)

    def leave(self, group: int) -> None:
        """Hear them no longer. It takes the right to join."""
        self._set(_DROP_MEMBERSHIP, group)

    def make_room(self, size: int) -> int:
        """Make room for a message of `size` bytes; the bytes of the largest that may be sent."""
        return grow_send(self._socket, size)

    def number(self, count: int = 1) -> int:
        """Take so many sequence numbers; the first of them."""
        first = self._sequence + 1
        self._sequence += count
        return first

    def send(self, data: bytes) -> None:
        """Send whole messages at once."""
        try:
            self._socket.send(data)
        except OSError as error:
            doing = f"sending {len(data)} bytes to {self._purpose}"
            raise kernel_error(error.errno or 0, doing) from error
        self.bytes_sent += len(data)

    def receive(self) -> bytes:
        """Wait for the next datagram."""
        return self._receive(0)

    def waiting(self) -> Iterator[bytes]:
        """Give the datagrams that wait already."""
        while data := self._receive(socket.MSG_DONTWAIT):
            yield data

    def heard(self) -> tuple[list[bytes], bool]:
        """Give the notifications that wait, and whether others were lost for want of room."""
        found: list[bytes] = []
        lost = False
        while True:
            try:
                found += self.waiting()
            except KernelError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
            else:
                return found, lost

    def ask(self, framed: Callable[[int], bytes]) -> list[memoryview]:
        """Send one request and collect its answers, each a message with its header.

        `framed` gives the request's bytes for a sequence number; it asks for an acknowledgement
        or a dump. TransientKernelError where the kernel's tables kept changing during every dump.
        """
        for _ in range(_DUMP_ATTEMPTS):
            for _ in self.waiting():  # what an earlier request left
                pass
            sequence = self.number()
            self.send(framed(sequence))
            replies, interrupted = self._answers(sequence)
            if not interrupted:
                return replies
        raise kernel_error(errno.EINTR, "the kernel's tables changed during every dump")

    def _answers(self, asked: int) -> tuple[list[memoryview], bool]:
        replies: list[memoryview] = []
        interrupted = False
        while True:
            for kind, flags, sequence, message in frames(self.receive()):
                if sequence != asked:
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_DONE:
                    return replies, interrupted
                if kind != NLMSG_ERROR:
                    replies.append(message)
                elif (refusal := read_error(message, flags, 0)) is None:
                    return replies, interrupted
                elif refusal.errno == errno.EINTR:
                    return [], True
                else:
                    raise kernel_error(refusal.errno, refusal.words or f"asking {self._purpose}")

    def _receive(self, flags: int) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_SIZE, flags)
        except BlockingIOError:
            return b""
        except OSError as error:
            doing = f"reading what {self._purpose} says"
            raise kernel_error(error.errno or 0, doing) from error

    def _set(self, option: int, value: int) -> None:
        try:
            self._socket.setsockopt(_SOL_NETLINK, option, value)
        except OSError as error:
            doing = f"listening to a group of {self._purpose}"
            raise kernel_error(error.errno or 0, doing) from error
