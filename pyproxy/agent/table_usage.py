"""How full the kernel's tables are that have an end, so that somebody hears of it before.

When conntrack is full, the kernel drops new connections. When the map of session affinity is full,
new clients are spread as if there were none. Both go on looking healthy from everywhere else.
"""

from __future__ import annotations

import math
import threading
from functools import partial
from pathlib import Path

from pyproxy.dataplane.nftables import schema
from pyproxy.errors import KernelError
from pyproxy.metrics import Metrics
from pyproxy.model.address import Family
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_sets, read_set_sizes

_CONNTRACK = [Path("/proc/sys/net/netfilter", f"nf_conntrack_{of}") for of in ("count", "max")]

TABLES = ("conntrack", *(schema.AFFINITY.of(family) for family in Family))


class TableUsageCollector:
    """Asks the kernel when a scrape asks, in whichever thread that is."""

    def __init__(self, metrics: Metrics) -> None:
        self._netlink = Nfnetlink()
        self._lock = threading.Lock()
        for table in TABLES:
            metrics.table_usage(table, partial(self.of, table))

    def close(self) -> None:
        """Give the socket back; there is nothing to be told from then on."""
        with self._lock:
            self._netlink.close()

    def of(self, table: str) -> float:
        """Give how full a table of TABLES is, from 0 to 1; not a number where nothing tells."""
        try:
            return self._conntrack() if table == TABLES[0] else self._affinity(table)
        except (OSError, ValueError, KernelError):
            return math.nan

    @staticmethod
    def _conntrack() -> float:
        count, most = (int(path.read_text()) for path in _CONNTRACK)
        return count / most if most else math.nan

    def _affinity(self, table: str) -> float:
        with self._lock:
            sizes = read_set_sizes(self._netlink.dump(get_sets(schema.TABLE)))
        # Kernels before 6.16 do not count.
        return sizes[table] / schema.AFFINITY.learned if table in sizes else math.nan
