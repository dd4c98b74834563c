"""Metrics of changes to objects: how many wait, and how long each takes until its commit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pyproxy.metrics.syncs import BY_FAMILY, SYNC
from pyproxy.model.address import Family
from pyproxy.model.objects import Kind

_NETWORK_BUCKETS = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))
_CHANGE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
PHASES = ("decode", "queue", "wait", "plan", "pack", "kernel", "listeners")
"""The phases of a change, in order."""


_SERVICE, _SLICE = Kind.SERVICE, Kind.ENDPOINT_SLICE


class _Queued(Collector):
    """The changes so far, and those of them that no sync has taken yet.

    Plain integers, because a first list has tens of thousands of changes, and one increment of the
    library's counters takes as long as all else in handling a change. One thread counts, any reads.
    """

    def __init__(self) -> None:
        # By identity, because the hash of an enum's member is slow Python code.
        self._services = self._slices = 0
        self._taken = (0, 0)
        self._last: float | None = None

    def add(self, kind: Kind, now: float) -> None:
        if kind is _SLICE:
            self._slices += 1
        elif kind is _SERVICE:
            self._services += 1
        self._last = now

    def take(self) -> None:
        self._taken = self._services, self._slices

    def collect(self) -> Iterator[Metric]:
        counts = (_SERVICE, "service", self._services), (_SLICE, "endpoint", self._slices)
        for (kind, name, count), taken in zip(counts, self._taken, strict=True):
            about = f"Changes of {kind.value}s"
            yield CounterMetricFamily(f"{SYNC}_{name}_changes", about, value=count)
            yield GaugeMetricFamily(
                f"{SYNC}_{name}_changes_pending",
                f"{about} that no sync has taken yet",
                value=count - taken,
            )
        last = GaugeMetricFamily(
            f"{SYNC}_last_queued_timestamp_seconds",
            "Time of the last change that a sync is due for",
            labels=BY_FAMILY,
        )
        if self._last is not None:
            for family in Family:
                last.add_metric((family.label,), self._last)
        yield last


class Histograms(Collector):
    """Histograms of seconds by the value of one label, or one histogram without a label.

    Plain numbers as in `_Queued`: an observation takes a fifth of the library's 1.3 microseconds,
    and each change makes eight. One thread adds, any reads.
    """

    def __init__(self, name: str, documentation: str, label: str, values: Sequence[str]) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = (label,) if label else ()
        self._counts = {value: [0] * (len(_CHANGE_BUCKETS) + 1) for value in values}
        self._sums = dict.fromkeys(values, 0.0)

    def add(self, value: str, seconds: float, count: int = 1) -> None:
        """Add `count` observations of a duration under a value of the label."""
        self._counts[value][bisect_left(_CHANGE_BUCKETS, seconds)] += count
        self._sums[value] += seconds * count

    def collect(self) -> Iterator[Metric]:
        """Yield the histograms."""
        bounds = [*map(floatToGoString, _CHANGE_BUCKETS), "+Inf"]
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for value, counts in self._counts.items():
            below = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric((value,) if self._labels else (), below, self._sums[value])
        yield family


class ChangeMetrics:
    """Metrics of changes; latencies are in seconds, and times in seconds since the epoch."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queued = _Queued()
        registry.register(self._queued)
        self._network_programming = Histogram(
            "kubeproxy_network_programming_duration_seconds",
            "Time from the change of a pod or Service, by the slice's annotation, to its commit",
            BY_FAMILY,
            buckets=_NETWORK_BUCKETS,
            registry=registry,
        )
        self.latency = Histograms(
            "pyproxy_programming_latency_seconds",
            "Time from reading a change to its commit",
            "",
            ("",),
        )
        self.phases = Histograms(
            "pyproxy_programming_phase_seconds",
            "Time of a change in each phase from its reading to the listeners of its commit",
            "phase",
            PHASES,
        )
        registry.register(self.latency)
        registry.register(self.phases)
        self._invalid = Gauge(
            "pyproxy_invalid_objects",
            "Objects that cannot be programmed, or not completely",
            ("kind",),
            registry=registry,
        )

    def queued(self, kind: Kind, now: float) -> None:
        """Count a changed object that a sync is due for."""
        self._queued.add(kind, now)

    def taken(self) -> None:
        """Record that a sync has taken all pending changes."""
        self._queued.take()

    def network_programmed(self, family: Family, latencies: Iterable[float]) -> None:
        """Record the latencies of programmed slices since the change that triggered them."""
        histogram = self._network_programming.labels(family.label)
        for latency in latencies:
            histogram.observe(latency)

    def invalid(self, kind: Kind, count: int) -> None:
        """Set the number of objects of a kind that have a problem."""
        self._invalid.labels(kind.value).set(count)
