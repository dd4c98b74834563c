"""Transactions of other programs on a table, from nf_tables' notifications.

Facts: net/netfilter/nf_tables_api.c. The kernel announces every object that a transaction touched
to the group NFNLGRP_NFTABLES, with the port of the sending socket in the header. The last message
of a transaction names the process. Elements that packets add to a set are not announced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from collections import deque

import msgspec

from pyproxy.errors import KernelError
from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.frames import read_messages
from pyproxy.netlink.nfnetlink import HEADER_SIZE
from pyproxy.netlink.nftables import SUBSYSTEM
from pyproxy.netlink.socket_filter import ACCEPT, IF_EQUAL, LOAD_WORD, REJECT, RETURN
from pyproxy.netlink.sockets import NETLINK_NETFILTER, NetlinkSocket

_GROUP_NFTABLES = 7
_RECEIVE_BUFFER = 4 << 20
_PORT_AT = 12
"""The offset of nlmsg_pid, the sender's port."""

_NEWGEN = 15
_GEN_PROC_PID, _GEN_PROC_NAME = 2, 3
# In the message of every kind of object, attribute 1 is the table's name.
_TABLE = 1
# In the messages of sets and of elements, attribute 2 is the set's name.
_SET = 2
_ELEMENTS = frozenset((12, 14))
_OF_SETS = _ELEMENTS | {9, 11}

_HEADER = struct.Struct("=HH")
"""An attribute's length and type."""
# Each pair is NEW and DEL; the GET message between them is never a notification.
_OBJECTS = {
    **dict.fromkeys((0, 2), "table"),
    **dict.fromkeys((3, 5), "chain"),
    **dict.fromkeys((6, 8), "rule"),
    **dict.fromkeys((9, 11), "set"),
    **dict.fromkeys((12, 14), "element"),
}

_CHAIN_OF = {**dict.fromkeys((3, 5), 3), **dict.fromkeys((6, 8), 2)}
"""The attribute that names the chain, by message type."""


class Foreign(msgspec.Struct, frozen=True):
    """Another program's transaction on the table: the kinds of objects, and the process.

    `by` is "nft (pid 4711)". `sets` are the sets that changed, or whose elements did. If
    notifications were lost, `by` and `objects` are empty, and `sets` is None.
    """

    objects: frozenset[str]
    by: str
    sets: frozenset[str] | None = None


class Monitor:
    """Detects transactions on one table that came through sockets other than `own_port`.

    One thread may `wait`; the other methods may be called from any thread and do not block.
    `received` counts the datagrams that reached this process.
    """

    def __init__(self, table: str, own_port: int) -> None:
        self._table = table
        self._own_port = own_port
        self._objects: set[str] = set()
        self._sets: set[str] = set()
        self._socket = NetlinkSocket(NETLINK_NETFILTER, "changes of tables", _RECEIVE_BUFFER)
        # Each commit of our own would wake the thread, which then competes for Python's lock. A
        # datagram has messages of one transaction. The filter loads in network order.
        own = (IF_EQUAL, 0, 1, socket.htonl(own_port))
        self._socket.filter_notifications(
            ((LOAD_WORD, 0, 0, _PORT_AT), own, (RETURN, 0, 0, REJECT), (RETURN, 0, 0, ACCEPT))
        )
        self._found: deque[Foreign] = deque()
        # Its value is the length of the queue, and one more after `end`.
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._ended = False
        self._closed = False
        self._open = threading.Lock()
        self._listening = False
        self.received = 0

    def listen(self) -> None:
        """Subscribe; earlier transactions are not reported."""
        self._socket.join(_GROUP_NFTABLES)
        self._listening = True

    def keep_listening(self) -> None:
        """Subscribe again if the last `listen` failed, and report what may have been missed."""
        if not self._listening:
            self.listen()
            self.missed()

    def pause(self) -> None:
        """Unsubscribe until `listen`: notifications of our large transaction would overflow."""
        # To leave a group needs the same right as to join it, which a reader may lack.
        if self._listening:
            # With no listener at all, the kernel does not even build the messages.
            self._socket.leave(_GROUP_NFTABLES)
            self._listening = False

    def end(self) -> None:
        """Make `wait` return None, now and from now on, and unsubscribe."""
        self._ended = True
        # First, because a thread that waits would otherwise wait forever if `pause` failed.
        os.eventfd_write(self._woken, 1)
        # Without the subscription nothing is lost: the socket is closed next.
        with contextlib.suppress(KernelError):
            self.pause()

    def missed(self, sets: frozenset[str] | None = None) -> None:
        """Make `wait` report a transaction that was detected by other means."""
        with self._open:
            if not self._closed:
                self._found.append(Foreign(frozenset(), "", sets))
                os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        """Close the descriptors, after `wait` has returned None."""
        self._socket.close()
        with self._open:
            self._closed = True
            os.close(self._woken)

    def wait(self) -> Foreign | None:
        """Block until another program's transaction; None after `end`. Raises KernelError."""
        # Not select, which takes no descriptor from 1024 up.
        poll = select.poll()
        for descriptor in (self._socket.fileno(), self._woken):
            poll.register(descriptor, select.POLLIN)
        while True:
            readable = {descriptor for descriptor, _ in poll.poll()}
            # `end` sets this flag before it wakes; any other wake-up is from `missed`.
            if self._ended:
                return None
            if self._woken in readable:
                os.eventfd_read(self._woken)
                return self._found.popleft()
            try:
                data = next(self._socket.receive_waiting(), b"")
            except KernelError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # The lost part may hold the end of the transaction that these objects belong to.
                self._objects.clear()
                self._sets.clear()
                return Foreign(frozenset(), "")
            self.received += 1
            if found := self._read(data):
                return found

    def _read(self, data: bytes) -> Foreign | None:
        found = None
        names, end = b"", 0
        for kind, _, _, port, message in read_messages(data):
            if kind >> 8 != SUBSYSTEM or port == self._own_port:
                continue
            number = kind & 0xFF
            # A flushed map of 100,000 elements has as many messages, which differ in their ends.
            if names and number in _ELEMENTS and message[HEADER_SIZE:end] == names:
                continue
            fields = attribute_map(message[HEADER_SIZE:])
            names, end = b"", 0
            # A large transaction has several datagrams, and several small ones may share one.
            if number == _NEWGEN:
                found = self._transaction(fields) or found
            elif _TABLE in fields and self._concerns(text(fields[_TABLE]), _chain(number, fields)):
                self._objects.add(_OBJECTS.get(number, "object"))
                if number in _OF_SETS and _SET in fields:
                    self._sets.add(text(fields[_SET]))
                if number in _ELEMENTS:
                    end = HEADER_SIZE + _size_of_names(message[HEADER_SIZE:])
                    names = bytes(message[HEADER_SIZE:end])
        return found

    def _concerns(self, table: str, chain: str) -> bool:  # noqa: ARG002 (subclasses use it)
        """Return whether an object is reported; `chain` is empty if it belongs to none."""
        return table == self._table

    def _transaction(self, fields: dict[int, memoryview]) -> Foreign | None:
        if not self._objects:
            return None
        name, number = fields.get(_GEN_PROC_NAME), fields.get(_GEN_PROC_PID)
        process = text(name) if name is not None else "unknown process"
        if number is not None:
            process += f" (pid {int.from_bytes(number, 'big')})"
        objects, self._objects = frozenset(self._objects), set()
        sets, self._sets = frozenset(self._sets), set()
        return Foreign(objects, process, sets)


def _size_of_names(attributes: memoryview) -> int:
    """Return the bytes of the first two attributes, table and set; 0 if they are not the first."""
    sizes = 0
    for expected in (_TABLE, _SET):
        if len(attributes) < sizes + _HEADER.size:
            return 0
        length, kind = _HEADER.unpack_from(attributes, sizes)
        if kind != expected:
            return 0
        sizes += (length + 3) & ~3
    return sizes


def _chain(kind: int, fields: dict[int, memoryview]) -> str:
    name = fields.get(_CHAIN_OF.get(kind, 0))
    return text(name) if name is not None else ""
