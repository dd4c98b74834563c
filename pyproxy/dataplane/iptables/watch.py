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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyproxy.dataplane.interface import Drift
from pyproxy.dataplane.iptables import names
from pyproxy.dataplane.iptables.fixed import HOOKS, TABLES
from pyproxy.dataplane.iptables.plan import Growth, TableName
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.netlink.monitor import Monitor
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation

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
        self._netlink = Nfnetlink()

    def transactions(self) -> int:
        """How many transactions there have been, whoever made them. Raises KernelError."""
        return read_generation(self._netlink.get(get_generation()))

    def end(self) -> None:
        """Have `wait` return None, and give back what only the thread that writes uses."""
        super().end()
        self._netlink.close()

    def _concerns(self, table: str, chain: str) -> bool:
        return table in TABLES and (not chain or chain in HOOKS or names.is_ours(chain))


class Watch:
    """Tells of what others write, whichever the flavour, and of what they write beside our own.

    Of iptables-nft the kernel counts the transactions, one for each table that is written; of
    a legacy table it counts the entries, and how many it has after a write of ours is known before.
    What another program changes at that very moment, without a change of that number, is not
    noticed.

    For one thread to `wait` in; the other methods are for the thread that writes.
    """

    def __init__(self, flavour: Flavour) -> None:
        self._closed = threading.Event()
        self._monitor: NftTables | None = None
        self._tables: tuple[LegacyTables, ...] = ()
        self._sizes: list[Sizes] = []
        self._missed = False
        if flavour is Flavour.NFT:
            self._monitor = NftTables()
        else:
            self._tables = tuple(LegacyTables(family) for family in Family)

    def begin(self) -> None:
        """Watch from here on: what is read after this is what is known. Raises KernelError."""
        if self._monitor is not None:
            self._monitor.listen()
        self._sizes = self._measure()
        self._missed = False

    @contextmanager
    def writing(
        self, growth: Mapping[TableName, Growth], *, from_known: bool = True
    ) -> Iterator[None]:
        """Take for our own what is written inside, when it is what makes the tables grow so.

        Where nothing tells how far a write came, because it failed, or from where it goes on, which
        `from_known` says, all is taken for our own. Raises KernelError.
        """
        if self._monitor is not None:
            with self._counted(self._monitor, len(growth)):
                yield
            return
        before = self._measure()
        self._missed |= bool(self._sizes) and before != self._sizes
        try:
            yield
        finally:
            self._sizes = self._measure()
        self._missed |= from_known and self._sizes_without(growth) != [
            {table: entries for table, (entries, _) in sizes.items()} for sizes in before
        ]

    @staticmethod
    @contextmanager
    def _counted(monitor: NftTables, own: int) -> Iterator[None]:
        before = monitor.transactions()
        monitor.pause()
        try:
            yield
        finally:
            monitor.listen()
        if (monitor.transactions() - before) % (1 << 32) != own:
            monitor.missed()

    def _sizes_without(self, growth: Mapping[TableName, Growth]) -> list[dict[str, int]]:
        none = Growth()
        return [
            {
                table: entries - growth.get((family, table), none).entries
                for table, (entries, _) in sizes.items()
            }
            for family, sizes in zip(Family, self._sizes, strict=True)
        ]

    def look(self) -> Drift | None:
        """Tell whether a legacy table is other than we left it. Raises KernelError."""
        sizes = self._measure()
        if not self._missed and (not self._sizes or sizes == self._sizes):
            return None
        self._sizes, self._missed = sizes, False
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
