"""The metrics of nftables mode alone: those of flow offload."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from pyproxy.dataplane.interface import FlowOffloadState


def collect(state: FlowOffloadState) -> Iterator[Metric]:
    """Yield the families."""
    yield GaugeMetricFamily(
        "pyproxy_flow_offload_active",
        "Whether established connections to Services take the fast path",
        value=not state.inactive,
    )
    yield GaugeMetricFamily(
        "pyproxy_flow_offload_interfaces",
        "Network interfaces whose packets may take the fast path",
        value=len(state.devices),
    )
    yield CounterMetricFamily(
        "pyproxy_flow_offload_flows",
        "Connections put on the fast path since its rules were written",
        value=state.added,
    )
