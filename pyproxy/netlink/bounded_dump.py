"""Dumps of netfilter's objects that end early: another program may have made any number of them.

Facts: net/netlink/af_netlink.c. The kernel fills a datagram of a dump when it is read, so that a
dump that is not read to its end costs what was read. A socket has one dump at a time; closing it
ends an unfinished one.
"""

from __future__ import annotations

import errno
import re

from pyproxy.netlink.frames import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    pack_message,
    read_messages,
)
from pyproxy.netlink.kernel_errors import kernel_error, read_done, read_error
from pyproxy.netlink.nfnetlink import HEADER_SIZE, Message, pack_family
from pyproxy.netlink.sockets import NETLINK_NETFILTER, NetlinkSocket

_RECEIVE_BUFFER = 1 << 20
_ATTEMPTS = 3


class BoundedNetfilter:
    """A socket to netfilter for requests and bounded dumps, with counts of what it read.

    All methods may block on the kernel; one thread may use it at a time.
    """

    def __init__(self) -> None:
        self._socket = self._open()
        self.requests = 0
        self.rows = 0

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def get(self, request: Message) -> memoryview:
        """Send a request for one object; return its attributes. Raises KernelError."""
        self.requests += 1
        replies = self._socket.request(lambda sequence: _pack(request, NLM_F_ACK, sequence))
        self.rows += len(replies)
        return replies[-1][HEADER_SIZE:] if replies else memoryview(b"")

    def dump(
        self, request: Message, limit: int, pattern: bytes = b""
    ) -> tuple[list[tuple[int, memoryview]], bool]:
        """Return at most `limit` objects, each with its family, and whether these are all.

        Datagrams without the bytes `pattern` are skipped, and do not count. Raises KernelError.
        """
        for _ in range(_ATTEMPTS):
            found = self._dump(request, limit, pattern)
            if found is not None:
                self.rows += len(found[0])
                return found
        raise kernel_error(errno.EINTR, "netfilter's tables changed during every dump")

    def _dump(
        self, request: Message, limit: int, pattern: bytes
    ) -> tuple[list[tuple[int, memoryview]], bool] | None:
        self.requests += 1
        sequence = self._socket.take_sequence()
        self._socket.send(_pack(request, NLM_F_DUMP, sequence))
        replies: list[tuple[int, memoryview]] = []
        interrupted = False
        while True:
            data = self._socket.receive()
            skipped = pattern not in data if pattern else False
            if skipped and not _may_end(data):
                continue
            for kind, flags, number, _, message in read_messages(data):
                if number != sequence:
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    ends = kind == NLMSG_DONE
                    error = read_done(message, flags) if ends else read_error(message, flags, 0)
                    if error is None:
                        return None if interrupted else (replies, True)
                    if error.errno == errno.EINTR:
                        return None
                    raise kernel_error(error.errno, error.words or "requesting from netfilter")
                if not skipped:
                    replies.append((message[HEADER_SIZE - 4], message[HEADER_SIZE:]))
            if len(replies) > limit:
                self._socket.close()
                self._socket = self._open()
                return replies[:limit], False

    @staticmethod
    def _open() -> NetlinkSocket:
        return NetlinkSocket(NETLINK_NETFILTER, "netfilter", _RECEIVE_BUFFER)


# The type and flags of NLMSG_DONE: NLM_F_MULTI, maybe with NLM_F_DUMP_INTR and NLM_F_ACK_TLVS.
_DONE = re.compile(rb"\x03\0[\x02\x12][\0\x02]")


def _may_end(data: bytes) -> bool:
    """Return whether a datagram may have the end of a dump, which is its first or last message."""
    return data[4:6] == b"\x02\0" or _DONE.search(data, max(0, len(data) - 128)) is not None


def _pack(request: Message, flags: int, sequence: int) -> bytes:
    head = pack_family(request.family)
    return pack_message(request.kind, flags | request.flags, sequence, head, request.body)
