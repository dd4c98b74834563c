"""Metrics of what the agent writes to the kernel, repairs there, and deletes from conntrack."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

from pyproxy.metrics.syncs import BY_FAMILY, SYNC_BUCKETS
from pyproxy.model.address import Family


class KernelMetrics:
    """Metrics of commits, repairs and conntrack sweeps; durations are in seconds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._writes = Counter(
            "pyproxy_kernel_writes_total", "Commits that wrote to the kernel", registry=registry
        )
        self._messages = Counter(
            "pyproxy_dataplane_messages_total",
            "Netlink messages, or runs of iptables-restore, of all commits",
            registry=registry,
        )
        self._bytes = Counter(
            "pyproxy_dataplane_bytes_total",
            "Bytes of the netlink messages, or of the input of iptables-restore, of all commits",
            registry=registry,
        )
        self._drift_repairs = Counter(
            "pyproxy_drift_repairs_total",
            "Objects repaired after a change by another program",
            ("object",),
            registry=registry,
        )
        self._conntrack_deleted = Counter(
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "Conntrack entries deleted because their endpoint no longer serves",
            BY_FAMILY,
            registry=registry,
        )
        self._conntrack_duration = Histogram(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "Duration of a sweep of the conntrack entries",
            BY_FAMILY,
            buckets=SYNC_BUCKETS,
            registry=registry,
        )

    def written(self, messages: int, size: int) -> None:
        """Count one commit with its messages and bytes."""
        self._writes.inc()
        self._messages.inc(messages)
        self._bytes.inc(size)

    def drift_repaired(self, counts: Mapping[str, int]) -> None:
        """Count repaired objects by kind."""
        for kind, count in counts.items():
            self._drift_repairs.labels(kind).inc(count)

    def conntrack_finished(self, family: Family, seconds: float, deleted: int) -> None:
        """Record a sweep of the conntrack entries of a family."""
        self._conntrack_duration.labels(family.label).observe(seconds)
        self._conntrack_deleted.labels(family.label).inc(deleted)
