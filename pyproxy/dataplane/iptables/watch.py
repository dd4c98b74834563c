"""How large the tables of iptables-legacy are: what a look of a microsecond can tell of them.

The kernel says of a table how many entries it has and their size, but announces no change. Facts:
include/uapi/linux/netfilter_ipv4/ip_tables.h, and its twin for IPv6.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from pyproxy.dataplane.iptables.fixed import TABLES
from pyproxy.model.address import Family
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
