import math

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.agent.table_usage import TABLES, TableUsageCollector
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nftables import schema
from pyproxy.metrics import Metrics
from pyproxy.model.address import Family
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_sets, read_set_sizes
from tests.dataplane.nftables.test_dataplane import programming, write

pytestmark = pytest.mark.kernel


def counts(namespace: Namespace) -> bool:
    netlink = namespace.call(Nfnetlink)
    try:
        return bool(read_set_sizes(netlink.dump(get_sets(schema.TABLE))))
    finally:
        netlink.close()


def test_tables_are_as_full_as_they_are(namespace: Namespace) -> None:
    fill = namespace.call(lambda: TableUsageCollector(Metrics()))
    assert TABLES == ("conntrack", "affinity4", "affinity6")
    with programming(namespace) as dataplane:
        assert math.isnan(fill.of("affinity4")), "there is no table yet"
        plan = dataplane.plan_full([], NodeRouting())
        namespace.call(lambda: dataplane.commit(plan))
        width = schema.AFFINITY.key_size(Family.IPV4)
        rows = {number.to_bytes(width, "big"): b"\x01" * 8 for number in range(8)}
        write(namespace, schema.AFFINITY, Family.IPV4, rows)
        if counts(namespace):
            assert fill.of("affinity4") == 8 / schema.AFFINITY.learned
            assert fill.of("affinity6") == 0
        else:
            assert math.isnan(fill.of("affinity4")), "kernels before 6.16 do not count"
    fill.close()
    assert math.isnan(fill.of("affinity4"))


def test_conntrack_has_an_end(namespace: Namespace) -> None:
    fill = namespace.call(lambda: TableUsageCollector(Metrics()))
    try:
        assert 0 <= namespace.call(lambda: fill.of("conntrack")) <= 1
    finally:
        fill.close()
