"""The metrics of iptables mode alone, under kube-proxy's names (v1.36) where it has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from pyproxy.dataplane.iptables.plan import TableName
from pyproxy.model.address import Family
from pyproxy.xtables import kube_names

_SYNC = "kubeproxy_sync_proxy_rules_iptables"
_PACKETS = {
    kube_names.INVALID_DROPPED: (
        "kubeproxy_iptables_ct_state_invalid_dropped_packets",
        "Forwarded packets dropped because conntrack found them invalid",
    ),
    kube_names.LOCALHOST_ACCEPTED: (
        "kubeproxy_iptables_localhost_nodeports_accepted_packets",
        "First packets of connections to node ports on loopback addresses",
    ),
}
"""kube-proxy's metric of each nfacct object, and its meaning here."""


class Counts(msgspec.Struct, frozen=True):
    """The counts of iptables mode.

    `rules` are those in pyproxy's chains now, and `rules_written` those of the last write.
    `failures` counts failed writes of a family: those of a full plan (True) and of a partial one
    (False). `packets` are those that met rules with a counter, by nfacct object. `lock_waits`
    counts writes that found iptables' lock held.
    """

    rules: Mapping[TableName, int]
    rules_written: Mapping[TableName, int]
    failures: Mapping[tuple[Family, bool], int]
    packets: Mapping[str, int]
    lock_waits: int


def collect(counts: Counts) -> Iterator[Metric]:
    """Yield the families."""
    # A gauge in kube-proxy too, despite its name: the rules that the tables have now.
    yield _rules(f"{_SYNC}_total", "Rules in our chains", counts.rules)
    yield _rules(f"{_SYNC}_last", "Rules written by the last commit", counts.rules_written)
    for name, whole, kind in (
        ("restore_failures", True, "full"),
        ("partial_restore_failures", False, "partial"),
    ):
        failures = CounterMetricFamily(
            f"{_SYNC}_{name}",
            f"Runs of iptables-restore in {kind} syncs that failed",
            labels=("ip_family",),
        )
        for family in Family:
            failures.add_metric((family.label,), counts.failures.get((family, whole), 0))
        yield failures
    for counter, count in counts.packets.items():
        yield CounterMetricFamily(*_PACKETS[counter], value=count)
    yield CounterMetricFamily(
        "pyproxy_iptables_lock_waits",
        "Runs of iptables-restore that waited for another program's lock",
        value=counts.lock_waits,
    )


def _rules(name: str, documentation: str, rules: Mapping[TableName, int]) -> Metric:
    found = GaugeMetricFamily(name, documentation, labels=("ip_family", "table"))
    for (family, table), count in rules.items():
        found.add_metric((family.label, table), count)
    return found
