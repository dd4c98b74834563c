"""Metrics of syncs: their duration, their failures, and the state that they leave."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pyproxy.model.address import Family

SYNC = "kubeproxy_sync_proxy_rules"
"""The prefix that kube-proxy's metrics of syncs, changes and failures share."""

SYNC_BUCKETS = tuple(0.001 * 2**power for power in range(15))
BY_FAMILY = ("ip_family",)


class SyncMetrics:
    """Metrics of syncs; durations are in seconds, and times in seconds since the epoch.

    Both families are in one transaction, so each sync counts for both.
    `sync_failures` and `cleanup_failures` are kube-proxy's names of the counters in the mode that
    serves, after `kubeproxy_sync_proxy_rules_`; an empty name leaves the counter out.
    """

    def __init__(
        self, registry: CollectorRegistry, *, sync_failures: str, cleanup_failures: str
    ) -> None:
        def histogram(name: str, documentation: str) -> Histogram:
            return Histogram(
                name, documentation, BY_FAMILY, buckets=SYNC_BUCKETS, registry=registry
            )

        def failures(name: str, documentation: str) -> Counter | None:
            if not name:
                return None
            return Counter(f"{SYNC}_{name}", documentation, BY_FAMILY, registry=registry)

        self._sync = histogram(f"{SYNC}_duration_seconds", "Duration of a sync")
        self._full_sync = histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Duration of a full sync",
        )
        self._partial_sync = histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Duration of a partial sync",
        )
        self._last_sync = Gauge(
            f"{SYNC}_last_timestamp_seconds",
            "Time of the last successful sync",
            BY_FAMILY,
            registry=registry,
        )
        self._no_local_endpoints = Gauge(
            f"{SYNC}_no_local_endpoints_total",
            "Services with a traffic policy Local and no endpoint on this node",
            (*BY_FAMILY, "traffic_policy"),
            registry=registry,
        )
        self._sync_failures = failures(sync_failures, "Syncs that failed, and were retried")
        self._cleanup_failures = failures(
            cleanup_failures, "Removals of unneeded objects that failed"
        )

    def finished(self, duration: float, now: float, *, full: bool) -> None:
        """Record a successful sync; `full` if it planned all Services."""
        which = self._full_sync if full else self._partial_sync
        for family in Family:
            self._sync.labels(family.label).observe(duration)
            which.labels(family.label).observe(duration)
            self._last_sync.labels(family.label).set(now)

    def failed(self) -> None:
        """Count a sync that failed as a whole, if kube-proxy counts those in this mode."""
        _count(self._sync_failures)

    def cleanup_failed(self) -> None:
        """Count a failed removal of unneeded objects, if kube-proxy counts those in this mode."""
        _count(self._cleanup_failures)

    def no_local_endpoints(self, family: Family, *, internal: int, external: int) -> None:
        """Set the number of Services with a policy Local and no endpoint here, by policy."""
        self._no_local_endpoints.labels(family.label, "internal").set(internal)
        self._no_local_endpoints.labels(family.label, "external").set(external)


def _count(failures: Counter | None) -> None:
    if failures is not None:
        for family in Family:
            failures.labels(family.label).inc()
