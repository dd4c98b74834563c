"""Read an agent's metrics, series by series."""

from __future__ import annotations

import urllib.request

from pyproxy.config.modes import ProxyMode
from pyproxy.dataplane.modes import MODES
from pyproxy.metrics import Metrics
from tests.waiting import PATIENCE

METRICS = "http://127.0.0.1:10249/metrics"


def series(text: str) -> dict[str, float]:
    """Return the value of each series of a Prometheus text, by name and labels as written."""
    split = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in split}


def nftables_metrics() -> Metrics:
    """Return new metrics with nftables mode's names of the failure counters."""
    names = MODES[ProxyMode.NFTABLES].failure_names
    return Metrics(sync_failures=names.sync, cleanup_failures=names.cleanup)


def scraped() -> dict[str, float]:
    """Return the metrics of this network namespace's agent, empty until it listens."""
    try:
        with urllib.request.urlopen(METRICS, timeout=PATIENCE) as reply:
            return series(reply.read().decode())
    except OSError:
        return {}
