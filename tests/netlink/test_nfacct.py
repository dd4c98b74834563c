"""nfacct objects of a real network namespace."""

from __future__ import annotations

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.netlink import nfacct
from pyproxy.netlink.nfnetlink import Nfnetlink
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

NAMES = frozenset({"one", "other"})


def listed(here: Namespace) -> frozenset[str]:
    netlink = here.call(Nfnetlink)
    try:
        return nfacct.list_counters(netlink)
    finally:
        netlink.close()


def test_counters_are_created_once_and_deleted() -> None:
    with empty_namespace("nfacct") as here:
        if not here.call(nfacct.is_supported):
            pytest.skip("the kernel has no nfacct")
        assert listed(here) == frozenset()
        for _ in range(2):
            assert here.call(lambda: nfacct.create_counters(NAMES)) == NAMES
        assert listed(here) == NAMES
        here.call(lambda: nfacct.delete_counters(frozenset({"one"})))
        assert listed(here) == {"other"}
        here.call(lambda: nfacct.delete_counters(NAMES))
        assert listed(here) == frozenset()
