"""Who else writes to the tables: announced for iptables-nft, and to be looked for in legacy ones.

Of a legacy table the kernel tells how many entries it has and their size, in a microsecond. Facts:
include/uapi/linux/netfilter_ipv4/ip_tables.h, and its twin for IPv6.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyproxy.dataplane.interface import Drift
from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.fixed import HOOKS, TABLES
from pyproxy.dataplane.iptables.programs import Flavour
from pyproxy.model.address import Family
from pyproxy.netlink.monitor import Monitor
from pyproxy.netlink.nfnetlink import kernel_error

_GET_INFO = 64
_INFO = struct.Struct("=32sI5I5III")
_LEVELS = {Family.IPV4: socket.IPPROTO_IP, Family.IPV6: socket.IPPROTO_IPV6}
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

Sizes = dict[str, tuple[int, int]]
"""The number of a table's entries, and their bytes."""


class LegacyTables:
    """Looks at one family's tables, in the network namespace that it was made in."""

    def __init__(self, family: Family) -> None:
        self._level = _LEVELS[family]
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._socket = socket.socket(_FAMILIES[family], socket.SOCK_RAW, socket.IPPROTO_RAW)
        except OSError as error:
            raise kernel_error(error.errno or 0, "looking at iptables-legacy") from error

    def sizes(self) -> Sizes:
        """Measure each table; one that is not there is empty. Raises KernelError."""
        return {table: self._size(table) for table in TABLES}

    def _size(self, table: str) -> tuple[int, int]:
        buffer = ctypes.create_string_buffer(_INFO.pack(table.encode(), *[0] * 13), _INFO.size)
        size = ctypes.c_uint32(_INFO.size)
        done = self._libc.getsockopt(
            self._socket.fileno(), self._level, _GET_INFO, buffer, ctypes.byref(size)
        )
        if done != 0:
            number = ctypes.get_errno()
            if number == errno.ENOENT:
                return 0, 0
            raise kernel_error(number, f"looking at table {table} of iptables-legacy")
        *_, entries, total = _INFO.unpack(buffer.raw)
        return entries, total

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()


class NftTables(Monitor):
    """Hears what others write to our chains, or to the kernel's own, by iptables-nft or nft."""

    def __init__(self) -> None:
        super().__init__("", own_port=0)

    def _concerns(self, table: str, chain: str) -> bool:
        return table in TABLES and (not chain or chain in HOOKS or names.is_ours(chain))


class Watch:
    """Tells of what others write, whichever the flavour; our own writes are made while paused.

    For one thread to `wait` in; the other methods are for the thread that writes.
    """

    def __init__(self, flavour: Flavour) -> None:
        self._closed = threading.Event()
        self._monitor: NftTables | None = None
        self._tables: tuple[LegacyTables, ...] = ()
        self._sizes: list[Sizes] = []
        if flavour is Flavour.NFT:
            self._monitor = NftTables()
        else:
            self._tables = tuple(LegacyTables(family) for family in Family)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take what is written inside for our own, and begin to watch behind it."""
        if self._monitor is not None:
            self._monitor.pause()
        try:
            yield
        finally:
            if self._monitor is not None:
                self._monitor.listen()
            self._sizes = self._measure()

    def look(self) -> Drift | None:
        """Tell whether a legacy table is of another size than we left it. Raises KernelError."""
        sizes = self._measure()
        if not self._sizes or sizes == self._sizes:
            return None
        self._sizes = sizes
        return Drift("")

    def wait(self) -> Drift | None:
        """Wait for somebody else's write to be announced; None at the end. Raises KernelError."""
        if self._monitor is None:
            self._closed.wait()
            return None
        foreign = self._monitor.wait()
        if foreign is None:
            self._monitor.close()
            return None
        return Drift(foreign.by)

    def close(self) -> None:
        """Have `wait` return, and give back the sockets."""
        self._closed.set()
        if self._monitor is not None:
            self._monitor.end()
        for each in self._tables:
            each.close()

    def _measure(self) -> list[Sizes]:
        return [tables.sizes() for tables in self._tables]
