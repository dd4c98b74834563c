"""Metrics of agents that have seen everything once, because series with labels appear when used."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pyproxy.agent.affinity_refusals import AffinityRefusals
from pyproxy.agent.config_checks import ConfigProblemCollector
from pyproxy.agent.table_usage import TableUsageCollector
from pyproxy.config.modes import ProxyMode
from pyproxy.dataplane.interface import FlowOffloadState, TableUsage
from pyproxy.dataplane.iptables import metrics as iptables_metrics
from pyproxy.dataplane.modes import MODES
from pyproxy.dataplane.nftables import metrics as nftables_metrics
from pyproxy.health.connection_metrics import ConnectionMetrics
from pyproxy.metrics import Metrics
from pyproxy.model.address import Family
from pyproxy.model.objects import Kind
from pyproxy.xtables import kube_names


class _FlowOffload:
    """The part of a dataplane that has a fast path."""

    def collect(self) -> Iterator[Metric]:
        return nftables_metrics.collect(FlowOffloadState(("eth0",), added=3))


def used() -> Metrics:
    """Return the metrics of an agent in nftables mode, with flow offload."""
    names = MODES[ProxyMode.NFTABLES].failure_names
    metrics = Metrics(sync_failures=names.sync, cleanup_failures=names.cleanup)
    metrics.changes.queued(Kind.SERVICE, 1000.5)
    metrics.changes.queued(Kind.ENDPOINT_SLICE, 1001.5)
    metrics.syncs.finished(0.003, 1002.5, full=True)
    metrics.syncs.finished(0.001, 1003.5, full=False)
    metrics.syncs.failed()
    metrics.syncs.cleanup_failed()
    metrics.changes.latency.add("", 0.0004)
    metrics.changes.latency.add("", 0.0006)
    metrics.changes.phases.add("kernel", 0.0004, 2)
    metrics.changes.network_programmed(Family.IPV4, [0.7, 400])
    metrics.changes.network_programmed(Family.IPV6, [])
    metrics.changes.invalid(Kind.SERVICE, 2)
    metrics.kernel.written(messages=5, size=1234)
    for family in Family:
        metrics.syncs.no_local_endpoints(family, internal=1, external=2)
        metrics.kernel.conntrack_finished(family, 0.01, deleted=3)
    metrics.process.feature("AllowServiceExternalIPs", "DEPRECATED", enabled=False)
    metrics.process.feature("NFTablesProxyMode", "", enabled=True)
    metrics.process.healthz_answered(200)
    metrics.process.livez_answered(503)
    metrics.api.count_request("GET", "api:6443", "200")
    metrics.api.count_request("GET", "api:6443", "<error>")
    metrics.api.observe_request("GET", "api:6443", 0.2, 0)
    metrics.api.observe_response("GET", "api:6443", 5000)
    metrics.api.event("posted")
    metrics.process.worker_failed("drift")
    metrics.kernel.drift_repaired({"element": 1})
    metrics.process.source_age(lambda: 12.5)
    metrics.register(ConnectionMetrics((), lambda: 0))
    metrics.process.suppressed_log_lines(lambda: 7)
    metrics.register(AffinityRefusals(dict, print, lambda: 0.0))
    metrics.register(ConfigProblemCollector(tuple))
    metrics.register(TableUsageCollector(lambda: (TableUsage("affinity4", 1, 4),)))
    metrics.register(_FlowOffload())
    return metrics


def read(metrics: Metrics) -> list[Metric]:
    return list(text_string_to_metric_families(metrics.exposition().decode()))


def families() -> Iterator[Metric]:
    """Yield the families of all modes, without those of other modes' failures."""
    yield from used().collect()
    yield from iptables_metrics.collect(
        iptables_metrics.Counts(
            rules=dict.fromkeys(((Family.IPV4, "nat"), (Family.IPV6, "nat")), 1),
            rules_written=dict.fromkeys(((Family.IPV4, "nat"), (Family.IPV6, "nat")), 1),
            failures={},
            packets={kube_names.INVALID_DROPPED: 1, kube_names.LOCALHOST_ACCEPTED: 1},
            lock_waits=1,
        )
    )
