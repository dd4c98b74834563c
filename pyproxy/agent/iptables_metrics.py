"""What iptables mode tells of its rules and its writes, under kube-proxy's names where it has one.

Facts: the names and labels are those of kube-proxy v1.36.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from pyproxy.dataplane.interface import Dataplane
from pyproxy.metrics import Metrics
from pyproxy.model.address import Family

if TYPE_CHECKING:
    from pyproxy.dataplane.iptables.plan import TableName

_SYNC = "kubeproxy_sync_proxy_rules_iptables"


@runtime_checkable
class Restoring(Protocol):
    """A dataplane of iptables mode, which writes with iptables-restore."""

    @property
    def rules(self) -> Mapping[TableName, int]:
        """How many rules each table has in chains of ours."""
        ...

    @property
    def rules_written(self) -> Mapping[TableName, int]:
        """How many the last write took."""
        ...

    @property
    def failures(self) -> Mapping[tuple[Family, bool], int]:
        """How many writes failed, of everything (True) and of what changed (False)."""
        ...

    @property
    def lock_waits(self) -> int:
        """How many times another program held iptables' lock."""
        ...


class Restores:
    """Asks the dataplane at every scrape, in whichever thread that is."""

    def __init__(self, dataplane: Restoring) -> None:
        self._dataplane = dataplane

    def collect(self) -> Iterator[Metric]:
        """Yield all of them, as Prometheus' registry asks for them."""
        dataplane = self._dataplane
        yield _rules(f"{_SYNC}_total", "Rules in chains of ours", dataplane.rules)
        yield _rules(f"{_SYNC}_last", "Rules that the last write took", dataplane.rules_written)
        yield self._failures(f"{_SYNC}_restore_failures", "Writes of everything that failed", True)
        yield self._failures(
            f"{_SYNC}_partial_restore_failures", "Writes of what changed that failed", False
        )
        yield CounterMetricFamily(
            "pyproxy_iptables_lock_waits",
            "Writes that had to wait for another program, which held the lock of iptables",
            value=dataplane.lock_waits,
        )

    def _failures(self, name: str, documentation: str, whole: bool) -> Metric:
        found = CounterMetricFamily(name, documentation, labels=("ip_family",))
        for family in Family:
            found.add_metric((family.label,), self._dataplane.failures[family, whole])
        return found


def metrics_of(dataplane: Dataplane[Any]) -> Metrics:
    """Make the metrics of an agent that has this dataplane."""
    made = Metrics()
    if isinstance(dataplane, Restoring):
        made.tell_also(Restores(dataplane))
    return made


def _rules(name: str, documentation: str, rules: Mapping[TableName, int]) -> Metric:
    found = GaugeMetricFamily(name, documentation, labels=("ip_family", "table"))
    for (family, table), count in rules.items():
        found.add_metric((family.label, table), count)
    return found
