"""All metrics of one agent, and their text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pyproxy.metrics.api import ApiMetrics
from pyproxy.metrics.changes import ChangeMetrics
from pyproxy.metrics.kernel import KernelMetrics
from pyproxy.metrics.process import ProcessMetrics
from pyproxy.metrics.syncs import SyncMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """All metrics of one agent. The methods of its parts never block, and any thread may call them.

    `sync_failures` and `cleanup_failures` are those of `SyncMetrics`.
    """

    def __init__(self, *, sync_failures: str = "", cleanup_failures: str = "") -> None:
        registry = self._registry = CollectorRegistry()
        self.process = ProcessMetrics(registry)
        self.syncs = SyncMetrics(
            registry, sync_failures=sync_failures, cleanup_failures=cleanup_failures
        )
        self.changes = ChangeMetrics(registry)
        self.kernel = KernelMetrics(registry)
        self.api = ApiMetrics(registry)

    def register(self, collector: Collector) -> None:
        """Collect the families of a part that counts by itself, at each scrape and in its thread.

        All metrics without a class in this package are exposed through such a collector.
        """
        self._registry.register(collector)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format, with content type `CONTENT_TYPE`."""
        # It only calls `collect`, so this object replaces the registry to filter the series.
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with the series that Go's client would have."""
        # Python's client also has a series _created for each counter, and le="1.0" for Go's le="1".
        for metric in self._registry.collect():
            samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            for sample in samples:
                if "le" in sample.labels:
                    sample.labels["le"] = sample.labels["le"].removesuffix(".0")
            metric.samples = samples
            yield metric
