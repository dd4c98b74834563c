"""How full the kernel's tables are, by the gauge that an alert watches."""

from __future__ import annotations

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.agent.table_usage import TableUsageCollector
from pyproxy.dataplane.interface import NodeRouting, TableUsage
from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.errors import TransientKernelError
from pyproxy.model.address import Family
from tests.dataplane.nftables.test_dataplane import programming, write
from tests.namespaces import empty_namespace


def shares(collector: TableUsageCollector) -> dict[str, float]:
    return {
        sample.labels["table"]: sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def test_only_tables_with_a_limit_have_a_share() -> None:
    collector = TableUsageCollector(
        lambda: (TableUsage("affinity4", 1, 4), TableUsage("services4", 20))
    )
    found = shares(collector)
    assert found["affinity4"] == 0.25
    assert found.keys() <= {"affinity4", "conntrack"}


def test_an_unreadable_dataplane_leaves_the_scrape_whole() -> None:
    def fails() -> tuple[TableUsage, ...]:
        raise TransientKernelError("reading sets", 4)

    assert shares(TableUsageCollector(fails)).keys() <= {"conntrack"}


@pytest.mark.kernel
def test_the_affinity_map_is_counted_by_the_kernel() -> None:
    with empty_namespace("usage") as namespace, programming(namespace) as dataplane:
        _check(namespace, dataplane)


def _check(namespace: Namespace, dataplane: NftablesDataplane) -> None:
    collector = TableUsageCollector(dataplane.table_usage)
    assert "affinity4" not in namespace.call(lambda: shares(collector)), "there is no table yet"
    plan = dataplane.plan_full([], NodeRouting())
    namespace.call(lambda: dataplane.commit(plan))
    width = schema.AFFINITY.key_size(Family.IPV4)
    rows = {number.to_bytes(width, "big"): b"\x01" * 8 for number in range(8)}
    write(namespace, schema.AFFINITY, Family.IPV4, rows)
    found = namespace.call(lambda: shares(collector))
    # Kernels before 6.16 do not count elements.
    if "affinity4" in found:
        assert found["affinity4"] == 8 / schema.AFFINITY.learned
        assert found["affinity6"] == 0
    assert 0 <= found["conntrack"] <= 1
