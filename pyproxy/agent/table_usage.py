"""The usage of the kernel's limited tables, as a metric that warns before they are full.

A full conntrack table makes the kernel drop new connections. A full map of session affinity makes
it spread new clients as if they had none. No other metric shows either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from pyproxy.dataplane.interface import TableUsage
from pyproxy.errors import PyproxyError

_CONNTRACK = [Path("/proc/sys/net/netfilter", f"nf_conntrack_{of}") for of in ("count", "max")]


class TableUsageCollector:
    """Reads the kernel at each scrape, in the scraping thread.

    `table_usage` counts the objects in the dataplane's tables; it may raise KernelError.
    """

    def __init__(self, table_usage: Callable[[], tuple[TableUsage, ...]]) -> None:
        self._table_usage = table_usage

    def collect(self) -> Iterator[Metric]:
        """Yield one gauge, with a series for each table with a limit."""
        found = GaugeMetricFamily(
            "pyproxy_kernel_table_fill_ratio",
            "Share of a kernel table that is in use: at 1 it takes nothing new",
            labels=("table",),
        )
        for each in (*_conntrack(), *self._dataplane()):
            if each.limit:
                found.add_metric((each.name,), each.used / each.limit)
        yield found

    def _dataplane(self) -> tuple[TableUsage, ...]:
        try:
            return self._table_usage()
        except PyproxyError:
            # A scrape has no way to report an error, and `pyproxy status` has.
            return ()


def _conntrack() -> Iterator[TableUsage]:
    # The kernel compares each network namespace's own count with the limit. Both files are missing
    # until nf_conntrack is loaded.
    try:
        count, limit = (int(path.read_text()) for path in _CONNTRACK)
    except (OSError, ValueError):
        return
    yield TableUsage("conntrack", count, limit)
