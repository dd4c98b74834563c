"""A netlink socket: its options, its buffers, requests with their replies, and notifications.

Facts: net/netlink/af_netlink.c and net/core/sock.c. The kernel processes each message while it is
being sent, so replies to a batch wait in the socket when `send` returns. SO_SNDBUFFORCE and
SO_RCVBUFFORCE need CAP_NET_ADMIN in the initial user namespace. In another one, as on the nodes of
a rootless cluster, net.core.wmem_max and rmem_max limit the buffers.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from pyproxy.errors import KernelError
from pyproxy.netlink.frames import NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, read_messages
from pyproxy.netlink.kernel_errors import kernel_error, read_done, read_error
from pyproxy.netlink.socket_filter import SO_ATTACH_FILTER, Step, attach

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NETLINK_GENERIC = 16

_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 1, 2
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 10, 11, 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SEND_OVERHEAD = 32
"""Bytes of the send buffer that the kernel reserves; a longer send fails with EMSGSIZE."""

# The kernel sizes the datagrams of a dump by the largest buffer that a reader has offered, up to
# 32 KiB; a datagram longer than the buffer would be cut without an error.
_RECEIVE_SIZE = 1 << 18
# The errors of all messages of one send wait here until `send` returns.
_CLIENT_BUFFER = 8 << 20
SEND_BUFFER = 1 << 18
"""Bytes of a client's send buffer, which grows for larger messages."""

_LAST_SEQUENCE = (1 << 32) - 1
_DUMP_ATTEMPTS = 10
_NOTIFICATIONS = 4096
"""Datagrams that are read at once: more than a receive buffer of 256 KiB holds."""


class NetlinkSocket:
    """A socket to one netlink protocol, in the network namespace that the caller is in.

    `purpose` is quoted in error messages: "netfilter" or "conntrack". All methods raise
    KernelError.
    """

    def __init__(self, protocol: int, purpose: str, receive_buffer: int) -> None:
        self._purpose = purpose
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
            # An error then has the kernel's text, and does not quote the request.
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            grow_receive_buffer(self._socket, receive_buffer)
            # Port 0 lets the kernel choose an unused port: a process may have several sockets.
            self._socket.bind((0, 0))
        except OSError as error:
            raise kernel_error(error.errno or 0, f"opening a {purpose} netlink socket") from error
        self._sequence = 0
        self.bytes_sent = 0
        self.send_seconds = 0.0

    @property
    def port(self) -> int:
        """The socket's address, which the kernel puts in notifications of its changes."""
        port: int = self._socket.getsockname()[0]
        return port

    @property
    def receive_buffer(self) -> int:
        """The bytes that unread replies may take, with the kernel's own for each of them."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def join(self, group: int) -> None:
        """Subscribe to a group's notifications."""
        self._set_membership(_ADD_MEMBERSHIP, group)

    def leave(self, group: int) -> None:
        """Unsubscribe from a group's notifications; it needs the same right as `join`."""
        self._set_membership(_DROP_MEMBERSHIP, group)

    def filter_dumps(self) -> None:
        """Have the kernel apply the fields of a dump's header as filters (since Linux 4.20)."""
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        except OSError as error:
            raise kernel_error(error.errno or 0, f"filtering dumps of {self._purpose}") from error

    def filter_notifications(self, steps: Sequence[Step]) -> None:
        """Have the kernel drop the notifications that a filter rejects."""
        try:
            attach(self._socket, SO_ATTACH_FILTER, steps)
        except OSError as error:
            doing = f"filtering notifications of {self._purpose}"
            raise kernel_error(error.errno or 0, doing) from error

    def grow_send_buffer(self, size: int) -> int:
        """Make room for a message of `size` bytes; return how large a message may be."""
        _grow(self._socket, _SO_SNDBUFFORCE, socket.SO_SNDBUF, size + _SEND_OVERHEAD)
        # The kernel doubles the value that is set; the doubled one is read here, and limits a send.
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _SEND_OVERHEAD

    def take_sequence(self, count: int = 1) -> int:
        """Reserve sequence numbers for `count` messages in a row; return the first."""
        # The header has 32 bits for it, which a thousand messages a second use up in fifty days.
        if self._sequence + count > _LAST_SEQUENCE:
            self._sequence = 0
            # Replies to earlier requests would have higher numbers than the next ones.
            for _ in self.receive_waiting():
                pass
        first = self._sequence + 1
        self._sequence += count
        return first

    def send(self, data: bytes) -> None:
        """Send one or more whole messages in one system call."""
        began = time.monotonic()
        try:
            self._socket.send(data)
        except OSError as error:
            doing = f"sending {len(data)} bytes to {self._purpose}"
            raise kernel_error(error.errno or 0, doing) from error
        self.send_seconds += time.monotonic() - began
        self.bytes_sent += len(data)

    def receive(self) -> bytes:
        """Wait for the next datagram."""
        return self._receive(0)

    def receive_waiting(self) -> Iterator[bytes]:
        """Yield the datagrams that wait already, without blocking."""
        while data := self._receive(socket.MSG_DONTWAIT):
            yield data

    def read_notifications(self) -> tuple[list[bytes], bool]:
        """Return waiting notifications, and whether others were lost; it does not block.

        A bounded number, so that a writer that is faster than this process cannot hold it here.
        """
        found: list[bytes] = []
        lost = False
        while True:
            try:
                found += islice(self.receive_waiting(), _NOTIFICATIONS - len(found))
            except KernelError as error:
                # The kernel drops notifications that do not fit, and reports it once.
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
            else:
                return found, lost

    def request(
        self,
        pack: Callable[[int], bytes],
        *,
        consistent: bool = True,
        keep: Callable[[memoryview], bool] | None = None,
    ) -> list[memoryview]:
        """Send one request and return its replies, each a message with its header.

        `pack` returns the request's bytes for a sequence number; it has NLM_F_ACK or NLM_F_DUMP.
        Unless it is to be `consistent`, an interrupted dump is returned like any other. Of many
        replies, those that `keep` refuses take no memory.
        Raises TransientKernelError if each of several dumps was interrupted by a change.
        """
        for _ in range(_DUMP_ATTEMPTS):
            for _ in self.receive_waiting():  # discard replies to an earlier request
                pass
            # A new number for each attempt: replies to the interrupted one may still arrive.
            sequence = self.take_sequence()
            self.send(pack(sequence))
            replies, received, interrupted = self._read_replies(sequence, keep)
            if not (interrupted and (consistent or not received)):
                return replies
        raise kernel_error(errno.EINTR, "the kernel's tables changed during every dump")

    def _read_replies(
        self, requested: int, keep: Callable[[memoryview], bool] | None
    ) -> tuple[list[memoryview], int, bool]:
        replies: list[memoryview] = []
        received, interrupted = 0, False
        while True:
            for kind, flags, sequence, _, message in read_messages(self.receive()):
                if sequence != requested:
                    continue
                # The objects changed between two datagrams: some may be missing or come twice.
                # The flag may be on NLMSG_DONE alone.
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                # NLMSG_DONE ends a dump; an acknowledgement ends the reply to a `get`.
                if kind == NLMSG_DONE:
                    error = read_done(message, flags)
                elif kind == NLMSG_ERROR:
                    error = read_error(message, flags, 0)
                else:
                    # Replies are views into their datagrams: a large dump is not copied.
                    received += 1
                    if keep is None or keep(message):
                        replies.append(message)
                    continue
                if error is None:
                    return replies, received, interrupted
                if error.errno == errno.EINTR:
                    return [], 0, True
                raise kernel_error(error.errno, error.words or f"requesting from {self._purpose}")

    def _receive(self, flags: int) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_SIZE, flags)
        except BlockingIOError:
            return b""
        except OSError as error:
            doing = f"receiving from {self._purpose}"
            raise kernel_error(error.errno or 0, doing) from error

    def _set_membership(self, option: int, group: int) -> None:
        try:
            self._socket.setsockopt(_SOL_NETLINK, option, group)
        except OSError as error:
            doing = f"subscribing to group {group} of {self._purpose}"
            raise kernel_error(error.errno or 0, doing) from error


class NetlinkClient:
    """The part that all clients of one protocol share: a socket, with counts of what it sent."""

    def __init__(self, protocol: int, purpose: str) -> None:
        self._socket = NetlinkSocket(protocol, purpose, _CLIENT_BUFFER)
        self.messages_sent = 0

    @property
    def bytes_sent(self) -> int:
        """The bytes of all requests, with their headers."""
        return self._socket.bytes_sent

    @property
    def send_seconds(self) -> float:
        """The seconds that sending took, in which the kernel processes the messages."""
        return self._socket.send_seconds

    @property
    def port(self) -> int:
        """The socket's address, which the kernel puts in notifications of its changes."""
        return self._socket.port

    @property
    def receive_buffer(self) -> int:
        """The bytes that unread replies may take, with the kernel's own for each of them."""
        return self._socket.receive_buffer

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def grow_receive_buffer(sock: socket.socket, size: int) -> None:
    """Set the receive buffer to `size` bytes, or as many as the process may have."""
    _grow(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, size)


def _grow(sock: socket.socket, privileged: int, limited: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, privileged, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, limited, size)
