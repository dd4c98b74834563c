"""Writes of other programs: nf_tables notifies of them, legacy tables are polled.

For a legacy table the kernel returns the number of its entries and their size, in a microsecond.
Facts: include/uapi/linux/netfilter_ipv4/ip_tables.h, and the same for IPv6.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from pyproxy.dataplane.interface import Drift
from pyproxy.dataplane.iptables.base_rules import TABLES
from pyproxy.dataplane.iptables.plan import Growth, TableName
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.netlink.monitor import Monitor
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation
from pyproxy.xtables import kube_names
from pyproxy.xtables.saved import HOOKS

# IPT_SO_GET_INFO and IP6T_SO_GET_INFO are equal. struct ipt_getinfo has the name, the valid hooks,
# five entry points, five underflows, the number of entries and their bytes.
_GET_INFO = 64
_INFO = struct.Struct("=32sI5I5III")
_LEVELS = {Family.IPV4: socket.IPPROTO_IP, Family.IPV6: socket.IPPROTO_IPV6}
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

Sizes = dict[str, tuple[int, int]]
"""The number of each table's entries, and their bytes."""


class LegacyTables:
    """Measures one family's legacy tables, in the network namespace that it was made in."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._level = _LEVELS[family]
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._socket = socket.socket(_FAMILIES[family], socket.SOCK_RAW, socket.IPPROTO_RAW)
        except OSError as error:
            raise kernel_error(
                error.errno or 0, "opening a raw socket for iptables-legacy"
            ) from error

    def sizes(self) -> Sizes:
        """Return the size of each table; one that does not exist is empty. Raises KernelError."""
        return {table: self._size(table) for table in TABLES}

    def _size(self, table: str) -> tuple[int, int]:
        buffer = ctypes.create_string_buffer(_INFO.pack(table.encode(), *[0] * 13), _INFO.size)
        size = ctypes.c_uint32(_INFO.size)
        # The kernel reads the table's name from the buffer of the result, which Python's own
        # getsockopt cannot fill.
        done = self._libc.getsockopt(
            self._socket.fileno(), self._level, _GET_INFO, buffer, ctypes.byref(size)
        )
        if done != 0:
            number = ctypes.get_errno()
            # The kernel loads a table's module for this request: ENOENT means that it has none.
            if number == errno.ENOENT:
                return 0, 0
            raise kernel_error(number, f"reading the size of table {table} of iptables-legacy")
        *_, entries, total = _INFO.unpack(buffer.raw)
        return entries, total

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class NftTables(Monitor):
    """Detects writes by iptables-nft or nft to pyproxy's chains or to built-in ones."""

    def __init__(self) -> None:
        # Some writes of ours come from iptables-restore's socket, whose port is unknown. So
        # `writing` pauses the notifications and counts transactions.
        super().__init__("", own_port=0)
        self._netlink = Nfnetlink()

    def transactions(self) -> int:
        """Return the number of nf_tables' transactions, of any program. Raises KernelError."""
        return read_generation(self._netlink.get(get_generation()))

    def end(self) -> None:
        """Make `wait` return None, and close the socket that only the committing thread uses."""
        super().end()
        self._netlink.close()

    def _concerns(self, table: str, chain: str) -> bool:
        # iptables-nft keeps each table as a table of nf_tables with the same name.
        return table in TABLES and (
            not chain or chain in HOOKS or kube_names.is_iptables_mode(chain)
        )


class DriftDetector:
    """Detects writes of other programs in either flavour, also those during a write of ours.

    With iptables-nft the kernel counts transactions. With
    a legacy table it counts entries, whose number after our write is known before. A change by
    another program at that moment that leaves the number as it is goes undetected.

    One thread may `wait`; the other methods are for the thread that commits.
    """

    def __init__(self, flavour: Flavour) -> None:
        self._closed = threading.Event()
        self._monitor: NftTables | None = None
        self._tables: tuple[LegacyTables, ...] = ()
        self._sizes: list[Sizes] = []
        self._missed = False
        if flavour is Flavour.NFT:
            self._monitor = NftTables()

    def watch(self, families: Iterable[Family]) -> None:
        """Watch the tables of these families alone, from the next `begin`. Raises KernelError."""
        if self._monitor is None:
            for opened in self._tables:
                opened.close()
            self._tables = tuple(LegacyTables(family) for family in sorted(families))
            self._sizes = []

    def begin(self) -> None:
        """Start to detect: the read-back that follows is the known state. Raises KernelError."""
        if self._monitor is not None:
            self._monitor.listen()
        elif not self._tables:
            self.watch(Family)
        self._sizes = self._measure()
        self._missed = False

    @contextmanager
    def writing(
        self,
        growth: Mapping[TableName, Growth],
        own_transactions: Callable[[], int],
        *,
        from_known: bool = True,
    ) -> Iterator[None]:
        """Regard writes inside as ours, if the tables grow by exactly `growth`.

        `own_transactions` counts the transactions that have been ours, for iptables-nft. If the
        write fails, or starts from an unknown state (`from_known` is False), all writes inside are
        regarded as ours. Raises KernelError.
        """
        if self._monitor is not None:
            with self._counted(self._monitor, own_transactions):
                yield
            return
        before = self._measure()
        self._missed |= bool(self._sizes) and before != self._sizes
        try:
            yield
        finally:
            self._sizes = self._measure()
        # Entries alone are compared: their bytes depend on how iptables packs matches and targets.
        self._missed |= from_known and self._sizes_without(growth) != [
            {table: entries for table, (entries, _) in sizes.items()} for sizes in before
        ]

    @staticmethod
    @contextmanager
    def _counted(monitor: NftTables, own: Callable[[], int]) -> Iterator[None]:
        # The count begins before `pause` and ends after `listen`, so that every transaction of
        # another program is counted or announced.
        before = monitor.transactions() - own()
        monitor.pause()
        try:
            yield
        finally:
            monitor.listen()
        # The kernel's generation id has 32 bits.
        if (monitor.transactions() - own() - before) % (1 << 32):
            monitor.missed()

    def _sizes_without(self, growth: Mapping[TableName, Growth]) -> list[dict[str, int]]:
        none = Growth()
        return [
            {
                table: entries - growth.get((tables.family, table), none).entries
                for table, (entries, _) in sizes.items()
            }
            for tables, sizes in zip(self._tables, self._sizes, strict=True)
        ]

    def poll(self) -> Drift | None:
        """Return a drift if a legacy table has changed since the last call. Raises KernelError."""
        sizes = self._measure()
        if not self._missed and (not self._sizes or sizes == self._sizes):
            return None
        self._sizes, self._missed = sizes, False
        return Drift("")

    def wait(self) -> Drift | None:
        """Block until another program writes; None after `close`. Raises KernelError."""
        if self._monitor is None:
            self._closed.wait()
            return None
        foreign = self._monitor.wait()
        # Closed here, because only the waiting thread knows that its select has ended.
        if foreign is None:
            self._monitor.close()
            return None
        return Drift(foreign.by)

    def close(self) -> None:
        """Make `wait` return, and close the sockets."""
        self._closed.set()
        if self._monitor is not None:
            self._monitor.end()
        for each in self._tables:
            each.close()

    def _measure(self) -> list[Sizes]:
        return [tables.sizes() for tables in self._tables]
