"""The metrics of an agent, under kube-proxy's names where it has one for the same count.

Other modules call these methods, or register a collector that is read at each scrape. Facts: the
names, labels and buckets are those of kube-proxy v1.36.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pyproxy import ARCHITECTURES, __version__
from pyproxy.model.address import Family
from pyproxy.model.objects import Kind

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SYNC = "kubeproxy_sync_proxy_rules"
_SYNC_BUCKETS = tuple(0.001 * 2**power for power in range(15))
_NETWORK_BUCKETS = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))
_REQUEST_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
_SIZE_BUCKETS = (64, 256, 512, *(1024 * 4**power for power in range(8)))
_CHANGE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_FAMILY = ("ip_family",)


class _Queued(Collector):
    """The changes so far, and those of them that no sync has taken yet.

    Plain integers, because a first list has tens of thousands of changes, and one increment of the
    library's counters takes as long as all else in handling a change. One thread counts, any reads.
    """

    def __init__(self) -> None:
        self._counts = dict.fromkeys(Kind, 0)
        self._taken = dict(self._counts)
        self._last: float | None = None

    def add(self, kind: Kind, now: float) -> None:
        self._counts[kind] += 1
        self._last = now

    def take(self) -> None:
        self._taken = dict(self._counts)

    def collect(self) -> Iterator[Metric]:
        for kind, name in ((Kind.SERVICE, "service"), (Kind.ENDPOINT_SLICE, "endpoint")):
            count, about = self._counts[kind], f"Changes of {kind.value}s"
            yield CounterMetricFamily(f"{_SYNC}_{name}_changes", about, value=count)
            yield GaugeMetricFamily(
                f"{_SYNC}_{name}_changes_pending",
                f"{about} that no sync has taken yet",
                value=count - self._taken[kind],
            )
        last = GaugeMetricFamily(
            f"{_SYNC}_last_queued_timestamp_seconds",
            "Time of the last change that a sync is due for",
            labels=_FAMILY,
        )
        if self._last is not None:
            for family in Family:
                last.add_metric((family.label,), self._last)
        yield last


class _Reading(Collector):
    """A gauge or a counter whose value is read at each scrape."""

    def __init__(
        self,
        family: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        documentation: str,
        read: Callable[[], float],
    ) -> None:
        self._family = family
        self._name = name
        self._documentation = documentation
        self._read = read

    def collect(self) -> Iterator[Metric]:
        yield self._family(self._name, self._documentation, value=self._read())


class Metrics:
    """All metrics of one agent; durations are in seconds, and times in seconds since the epoch.

    Both families are in one transaction, so each sync counts for both.
    `sync_failures` and `cleanup_failures` are kube-proxy's names of the counters in the mode that
    serves, after `kubeproxy_sync_proxy_rules_`; an empty name leaves the counter out.
    """

    def __init__(self, *, sync_failures: str = "", cleanup_failures: str = "") -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._declare_syncs(registry)
        self._sync_failures = _failures(sync_failures, "Syncs that failed, and were retried")
        self._cleanup_failures = _failures(
            cleanup_failures, "Removals of unneeded objects that failed"
        )
        for each in (self._sync_failures, self._cleanup_failures):
            if each is not None:
                registry.register(each)
        self._declare_changes(registry)
        self._declare_conntrack(registry)
        self._declare_serving(registry)
        self._declare_kernel(registry)
        _declare_build(registry)

    def _declare_syncs(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, documentation: str) -> Histogram:
            return Histogram(name, documentation, _FAMILY, buckets=_SYNC_BUCKETS, registry=registry)

        self._sync = histogram(f"{_SYNC}_duration_seconds", "Duration of a sync")
        self._full_sync = histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Duration of a full sync",
        )
        self._partial_sync = histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Duration of a partial sync",
        )
        self._last_sync = Gauge(
            f"{_SYNC}_last_timestamp_seconds",
            "Time of the last successful sync",
            _FAMILY,
            registry=registry,
        )
        self._no_local_endpoints = Gauge(
            f"{_SYNC}_no_local_endpoints_total",
            "Services with a traffic policy Local and no endpoint on this node",
            (*_FAMILY, "traffic_policy"),
            registry=registry,
        )

    def _declare_changes(self, registry: CollectorRegistry) -> None:
        self._queued = _Queued()
        registry.register(self._queued)
        self._network_programming = Histogram(
            "kubeproxy_network_programming_duration_seconds",
            "Time from the change of a pod or Service, by the slice's annotation, to its commit",
            _FAMILY,
            buckets=_NETWORK_BUCKETS,
            registry=registry,
        )
        self._programming_latency = Histogram(
            "pyproxy_programming_latency_seconds",
            "Time from reading a change to its commit",
            buckets=_CHANGE_BUCKETS,
            registry=registry,
        )
        self._invalid = Gauge(
            "pyproxy_invalid_objects",
            "Objects that cannot be programmed, or not completely",
            ("kind",),
            registry=registry,
        )

    def _declare_conntrack(self, registry: CollectorRegistry) -> None:
        self._conntrack_deleted = Counter(
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "Conntrack entries deleted because their endpoint no longer serves",
            _FAMILY,
            registry=registry,
        )
        self._conntrack_duration = Histogram(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "Duration of a sweep of the conntrack entries",
            _FAMILY,
            buckets=_SYNC_BUCKETS,
            registry=registry,
        )

    def _declare_serving(self, registry: CollectorRegistry) -> None:
        self._healthz = Counter(
            "kubeproxy_proxy_healthz_total", "Responses of /healthz", ("code",), registry=registry
        )
        self._livez = Counter(
            "kubeproxy_proxy_livez_total", "Responses of /livez", ("code",), registry=registry
        )
        self._worker_failures = Counter(
            "pyproxy_worker_failures_total",
            "Unexpected failures of threads: each is a bug in pyproxy",
            ("thread",),
            registry=registry,
        )
        self._requests = Counter(
            "rest_client_requests_total",
            "Requests to the API server",
            ("code", "host", "method"),
            registry=registry,
        )
        self._request_duration = Histogram(
            "rest_client_request_duration_seconds",
            "Time from a request to the API server to the head of its response",
            ("host", "verb"),
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self._request_size = Histogram(
            "rest_client_request_size_bytes",
            "Bytes of the body of a request to the API server",
            ("host", "verb"),
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )
        self._events = Counter(
            "pyproxy_events_total",
            "Events by outcome: posted, known (another node was first), refused by the API server, "
            "or dropped because there were too many",
            ("outcome",),
            registry=registry,
        )

    def _declare_kernel(self, registry: CollectorRegistry) -> None:
        self._kernel_writes = Counter(
            "pyproxy_kernel_writes_total", "Commits that wrote to the kernel", registry=registry
        )
        self._drift_repairs = Counter(
            "pyproxy_drift_repairs_total",
            "Objects repaired after a change by another program",
            ("object",),
            registry=registry,
        )
        self._messages = Counter(
            "pyproxy_dataplane_messages_total",
            "Messages of these commits: netlink messages, or runs of iptables-restore",
            registry=registry,
        )
        self._bytes = Counter(
            "pyproxy_dataplane_bytes_total",
            "Bytes of these messages, or of the input of iptables-restore",
            registry=registry,
        )

    def register(self, collector: Collector) -> None:
        """Collect the families of a part that counts by itself, at each scrape and in its thread.

        All metrics without a method in this class are exposed through such a collector.
        """
        self._registry.register(collector)

    def drift_repaired(self, counts: Mapping[str, int]) -> None:
        """Count repaired objects by kind."""
        for kind, count in counts.items():
            self._drift_repairs.labels(kind).inc(count)

    def change_queued(self, kind: Kind, now: float) -> None:
        """Count a changed object that a sync is due for."""
        self._queued.add(kind, now)

    def changes_taken(self) -> None:
        """Record that a sync has taken all pending changes."""
        self._queued.take()

    def sync_finished(self, duration: float, now: float, *, full: bool) -> None:
        """Record a successful sync; `full` if it planned all Services."""
        which = self._full_sync if full else self._partial_sync
        for family in Family:
            self._sync.labels(family.label).observe(duration)
            which.labels(family.label).observe(duration)
            self._last_sync.labels(family.label).set(now)

    def sync_failed(self) -> None:
        """Count a sync that failed as a whole, if kube-proxy counts those in this mode."""
        _count(self._sync_failures)

    def cleanup_failed(self) -> None:
        """Count a failed removal of unneeded objects, if kube-proxy counts those in this mode."""
        _count(self._cleanup_failures)

    def programmed(self, latencies: Iterable[float]) -> None:
        """Record the latencies of programmed changes since they were read."""
        for latency in latencies:
            self._programming_latency.observe(latency)

    def network_programmed(self, family: Family, latencies: Iterable[float]) -> None:
        """Record the latencies of programmed slices since the change that triggered them."""
        histogram = self._network_programming.labels(family.label)
        for latency in latencies:
            histogram.observe(latency)

    def no_local_endpoints(self, family: Family, *, internal: int, external: int) -> None:
        """Set the number of Services with a policy Local and no endpoint here, by policy."""
        self._no_local_endpoints.labels(family.label, "internal").set(internal)
        self._no_local_endpoints.labels(family.label, "external").set(external)

    def invalid(self, kind: Kind, count: int) -> None:
        """Set the number of objects of a kind that have a problem."""
        self._invalid.labels(kind.value).set(count)

    def kernel_written(self, messages: int, size: int) -> None:
        """Count one commit with its messages and bytes."""
        self._kernel_writes.inc()
        self._messages.inc(messages)
        self._bytes.inc(size)

    def conntrack_finished(self, family: Family, seconds: float, deleted: int) -> None:
        """Record a sweep of the conntrack entries of a family."""
        self._conntrack_duration.labels(family.label).observe(seconds)
        self._conntrack_deleted.labels(family.label).inc(deleted)

    def worker_failed(self, name: str) -> None:
        """Count an unexpected failure of a thread."""
        self._worker_failures.labels(name).inc()

    def healthz_answered(self, status: int) -> None:
        """Count a response of /healthz."""
        self._healthz.labels(str(status)).inc()

    def livez_answered(self, status: int) -> None:
        """Count a response of /livez."""
        self._livez.labels(str(status)).inc()

    def count_request(self, method: str, host: str, code: str) -> None:
        """Count a request to the API server; `code` is the HTTP status, or `<error>`."""
        self._requests.labels(code, host, method).inc()

    def observe_request(self, method: str, host: str, duration: float, size: int) -> None:
        """Record the bytes of a request's body, and the time up to the head of its response."""
        self._request_duration.labels(host, method).observe(duration)
        self._request_size.labels(host, method).observe(size)

    def event(self, outcome: str) -> None:
        """Count an Event: `posted`, `known`, `refused` or `dropped`."""
        self._events.labels(outcome).inc()

    def suppressed_log_lines(self, count: Callable[[], int]) -> None:
        """Call `count` at each scrape for the number of log lines that were suppressed."""
        about = "Log lines beyond the rates of their object and of their kind"
        name = "pyproxy_log_lines_suppressed"
        self.register(_Reading(CounterMetricFamily, name, about, count))

    def source_age(self, age: Callable[[], float]) -> None:
        """Call `age` at each scrape for the seconds since the source last responded."""
        about = "Time since the API server, or the folder of manifests, last responded"
        name = "pyproxy_source_last_event_age_seconds"
        self.register(_Reading(GaugeMetricFamily, name, about, age))

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


def _failures(name: str, documentation: str) -> Counter | None:
    """Declare a counter of failures by family, if there is one; it is not registered yet."""
    if not name:
        return None
    return Counter(f"{_SYNC}_{name}", documentation, _FAMILY, registry=None)


def _count(failures: Counter | None) -> None:
    if failures is not None:
        for family in Family:
            failures.labels(family.label).inc()


def _declare_build(registry: CollectorRegistry) -> None:
    machine = platform.machine()
    labels = {
        "build_date": "",
        "compiler": platform.python_implementation(),
        "git_commit": "",
        "git_tree_state": "",
        "git_version": f"v{__version__}",
        "go_version": "",
        "major": __version__.split(".")[0],
        "minor": __version__.split(".")[1],
        "platform": f"{platform.system().lower()}/{ARCHITECTURES.get(machine, machine)}",
    }
    gauge = Gauge(
        "kubernetes_build_info",
        "Version and platform of the running program",
        tuple(labels),
        registry=registry,
    )
    gauge.labels(**labels).set(1)
