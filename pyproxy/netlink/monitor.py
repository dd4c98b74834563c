"""Who else writes to a table: nf_tables' own notifications.

Facts: net/netfilter/nf_tables_api.c. Every object that a transaction touched is announced to the
group NFNLGRP_NFTABLES, with the port of the socket that sent the transaction in the header; the
last message of a transaction names the process. What packets add to a set is not announced.
"""

from __future__ import annotations

import errno
import os
import select

import msgspec

from pyproxy.errors import KernelError
from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.frames import HEADER
from pyproxy.netlink.nfnetlink import HEADER_SIZE
from pyproxy.netlink.sockets import NETLINK_NETFILTER, NetlinkSocket

_GROUP_NFTABLES = 7
_RECEIVE_BUFFER = 4 << 20

_SUBSYSTEM = 10
_NEWGEN = 15
_GEN_PROC_PID, _GEN_PROC_NAME = 2, 3
_TABLE = 1
_OBJECTS = {
    **dict.fromkeys((0, 2), "table"),
    **dict.fromkeys((3, 5), "chain"),
    **dict.fromkeys((6, 8), "rule"),
    **dict.fromkeys((9, 11), "set"),
    **dict.fromkeys((12, 14), "element"),
}

_CHAIN_OF = {**dict.fromkeys((3, 5), 3), **dict.fromkeys((6, 8), 2)}
"""Which attribute names the chain, of a chain and of a rule."""


class Foreign(msgspec.Struct, frozen=True):
    """Another program's transaction on the table: which kinds of object, and by whom.

    `by` is "nft (pid 4711)", and empty where notifications were lost, with no objects either.
    """

    objects: frozenset[str]
    by: str


class Monitor:
    """Listens for transactions on one table that came through sockets other than `own_port`.

    For one thread to `wait` in; the other methods may be called from any.
    """

    def __init__(self, table: str, own_port: int) -> None:
        self._table = table
        self._own_port = own_port
        self._objects: set[str] = set()
        self._socket = NetlinkSocket(NETLINK_NETFILTER, "changes of tables", _RECEIVE_BUFFER)
        self._woken = os.eventfd(0, os.EFD_CLOEXEC)
        self._ended = False
        self._listening = False

    def listen(self) -> None:
        """Begin to hear; what happened before is not told."""
        self._socket.join(_GROUP_NFTABLES)
        self._listening = True

    def pause(self) -> None:
        """Hear nothing until `listen`: a large transaction of our own would drown the rest."""
        # Leaving takes the right to join, which whoever never joined may lack.
        if self._listening:
            self._socket.leave(_GROUP_NFTABLES)
            self._listening = False

    def end(self) -> None:
        """Have `wait` return None, now and from now on, and the kernel tell us nothing more."""
        self._ended = True
        self.pause()
        os.eventfd_write(self._woken, 1)

    def missed(self) -> None:
        """Have `wait` tell of a transaction that was not heard of."""
        os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        """Give back the descriptors, once nobody waits any more."""
        self._socket.close()
        os.close(self._woken)

    def wait(self) -> Foreign | None:
        """Wait for another program's transaction; None once `end` was called.

        Raises KernelError.
        """
        while True:
            readable, _, _ = select.select([self._socket.fileno(), self._woken], [], [])
            if self._ended:
                return None
            if self._woken in readable:
                os.eventfd_read(self._woken)
                return Foreign(frozenset(), "")
            try:
                data = next(self._socket.waiting(), b"")
            except KernelError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._objects.clear()
                return Foreign(frozenset(), "")
            if found := self._read(memoryview(data)):
                return found

    def _read(self, data: memoryview) -> Foreign | None:
        found = None
        offset = 0
        while offset + HEADER_SIZE <= len(data):
            length, kind, _, _, port = HEADER.unpack_from(data, offset)
            if length < HEADER_SIZE:
                break
            if kind >> 8 == _SUBSYSTEM and port != self._own_port:
                fields = attribute_map(data[offset + HEADER_SIZE : offset + length])
                if kind & 0xFF == _NEWGEN:
                    found = self._transaction(fields) or found
                elif _TABLE in fields and self._concerns(
                    text(fields[_TABLE]), _chain(kind & 0xFF, fields)
                ):
                    self._objects.add(_OBJECTS.get(kind & 0xFF, "object"))
            offset += (length + 3) & ~3
        return found

    def _concerns(self, table: str, chain: str) -> bool:  # noqa: ARG002 (others look at it)
        """Say whether an object is worth telling of; `chain` is empty where it is in none."""
        return table == self._table

    def _transaction(self, fields: dict[int, memoryview]) -> Foreign | None:
        if not self._objects:
            return None
        name, number = fields.get(_GEN_PROC_NAME), fields.get(_GEN_PROC_PID)
        process = text(name) if name is not None else "somebody"
        if number is not None:
            process += f" (pid {int.from_bytes(number, 'big')})"
        objects, self._objects = frozenset(self._objects), set()
        return Foreign(objects, process)


def _chain(kind: int, fields: dict[int, memoryview]) -> str:
    name = fields.get(_CHAIN_OF.get(kind, 0))
    return text(name) if name is not None else ""
