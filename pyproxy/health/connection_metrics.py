"""Metrics of the servers' connections, counted by the servers and read at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pyproxy.health.http import HttpThread

_LISTENER = ("listener",)


class ConnectionMetrics(Collector):
    """The connections of several servers, by the name of the listener.

    `incomplete_ports` returns the number of health-check node ports that are not open on all of
    their addresses.
    """

    def __init__(self, servers: Sequence[HttpThread], incomplete_ports: Callable[[], int]) -> None:
        self._servers = servers
        self._incomplete_ports = incomplete_ports

    def collect(self) -> Iterator[Metric]:
        """Yield the families. Any thread."""
        accepted = CounterMetricFamily(
            "pyproxy_http_connections",
            "Connections to the ports for health, health checks and metrics",
            labels=_LISTENER,
        )
        _add(accepted, (each.accepted for each in self._servers))
        yield accepted
        present = GaugeMetricFamily(
            "pyproxy_http_open_connections", "Connections that are open now", labels=_LISTENER
        )
        _add(present, (each.open_connections() for each in self._servers))
        yield present
        dropped = CounterMetricFamily(
            "pyproxy_http_dropped_connections",
            "Connections dropped because of a timeout, because one client had more than its share, "
            "or because there were too many",
            labels=("listener", "reason"),
        )
        total: Counter[tuple[str, str]] = Counter()
        for each in self._servers:
            # A copy, because the server's thread counts meanwhile.
            for (listener, reason), count in dict(each.dropped).items():
                total[listener, reason.value] += count
        for labels, count in sorted(total.items()):
            dropped.add_metric(labels, count)
        yield dropped
        yield GaugeMetricFamily(
            "pyproxy_incomplete_health_check_ports",
            "Services whose health-check node port is not open on all of its addresses",
            value=self._incomplete_ports(),
        )


def _add(family: CounterMetricFamily | GaugeMetricFamily, counts: Iterator[Counter[str]]) -> None:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(dict(each))
    for listener, count in sorted(total.items()):
        family.add_metric((listener,), count)
