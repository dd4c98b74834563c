"""A Service with ever new timeouts of its session affinity: the kernel keeps few of its chains."""

from __future__ import annotations

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, NodeRouting
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.policy.routing import ServiceRouting
from tests.dataplane.nftables.test_dataplane import numbered, programming
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel


def learning(namespace: Namespace) -> set[str]:
    listing = namespace.run(["nft", "list", "chains", "inet"]).stdout
    words = (line.split() for line in listing.splitlines())
    return {each[1] for each in words if each[:1] == ["chain"] and chains.is_learning(each[1])}


def change(namespace: Namespace, dataplane: NftablesDataplane, routing: ServiceRouting) -> None:
    plan = dataplane.plan(Changes({routing.name: routing}))
    assert namespace.call(lambda: dataplane.commit(plan)) == ()


def test_unused_chains_are_deleted_and_used_ones_stay() -> None:
    with empty_namespace("timeouts") as namespace, programming(namespace) as dataplane:
        other = numbered(1, affinity=7)
        plan = dataplane.plan_full([other, numbered(0)], NodeRouting())
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        counts = []
        for timeout in range(100, 250):
            change(namespace, dataplane, numbered(0, affinity=timeout))
            if timeout % 10 == 9:
                dataplane.tick()
                counts.append(len(learning(namespace)))
        assert max(counts) <= 50
        assert {"learn4-7", "learn4-249"} <= learning(namespace)
        # A chain that was deleted is made again.
        change(namespace, dataplane, numbered(0, affinity=100))
        assert "learn4-100" in learning(namespace)
        assert not dataplane.plan_full([other, numbered(0, affinity=100)], NodeRouting())
