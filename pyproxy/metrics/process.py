"""Metrics of the process: its version, features and threads, and the pages about its health."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pyproxy import ARCHITECTURES, __version__


class ProcessMetrics:
    """Metrics of the process; those of memory, files and CPU time are the library's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        ProcessCollector(registry=registry)
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
        self._features = Gauge(
            "kubernetes_feature_enabled",
            "Whether the feature of a feature gate is on; an empty stage is that of a stable one",
            ("name", "stage"),
            registry=registry,
        )
        build = _build()
        gauge = Gauge(
            "kubernetes_build_info",
            "Version and platform of the running program",
            tuple(build),
            registry=registry,
        )
        gauge.labels(**build).set(1)

    def feature(self, name: str, stage: str, *, enabled: bool) -> None:
        """Set whether the feature of a gate is on; `stage` is empty for a stable feature."""
        self._features.labels(name, stage).set(enabled)

    def healthz_answered(self, status: int) -> None:
        """Count a response of /healthz."""
        self._healthz.labels(str(status)).inc()

    def livez_answered(self, status: int) -> None:
        """Count a response of /livez."""
        self._livez.labels(str(status)).inc()

    def worker_failed(self, name: str) -> None:
        """Count an unexpected failure of a thread."""
        self._worker_failures.labels(name).inc()

    def suppressed_log_lines(self, count: Callable[[], int]) -> None:
        """Call `count` at each scrape for the number of log lines that were suppressed."""
        about = "Log lines beyond the rates of their object and of their kind"
        name = "pyproxy_log_lines_suppressed"
        self._registry.register(_Reading(CounterMetricFamily, name, about, count))

    def source_age(self, age: Callable[[], float]) -> None:
        """Call `age` at each scrape for the seconds since the source's quietest watch had data."""
        about = "Time since the watch with the oldest data had any, or the folder was checked"
        name = "pyproxy_source_last_event_age_seconds"
        self._registry.register(_Reading(GaugeMetricFamily, name, about, age))


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


def _build() -> dict[str, str]:
    """Return the labels of the build, with Go's name of the platform."""
    machine = platform.machine()
    return {
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
