"""A tenant writes Services with every timeout that the API allows."""

from __future__ import annotations

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, NodeRouting
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.affinity import learning_chains
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.model.address import Family, Port, Protocol
from pyproxy.model.address import parse_address as ip
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.dataplane.nftables.test_dataplane import numbered, programming
from tests.namespaces import empty_namespace

LONGEST = 86_400


def test_there_are_few_chains_for_all_timeouts() -> None:
    assert len({chains.timeout_class(timeout) for timeout in range(1, LONGEST + 1)}) == 96


def test_a_timeout_is_never_shortened_and_hardly_prolonged() -> None:
    for timeout in (*range(1, 8000), *range(8000, LONGEST + 1, 7), LONGEST):
        assert timeout <= chains.timeout_class(timeout) < timeout * 1.25


@pytest.mark.parametrize(
    "timeout", [*range(1, 21), 30, 60, 120, 300, 600, 1800, 3600, 7200, 10800, 43200, 86400]
)
def test_usual_timeouts_are_exact(timeout: int) -> None:
    assert chains.timeout_class(timeout) == timeout


@pytest.mark.parametrize(
    ("frontends", "share"),
    [(1, 4096), (8, 4096), (9, 256), (128, 256), (129, 16), (2048, 16), (2049, 1), (32768, 1)],
)
def test_a_service_has_one_share_for_all_its_frontends(frontends: int, share: int) -> None:
    assert frontends * share <= 32_768
    port = PortRouting(
        "",
        Family.IPV4,
        Protocol.TCP,
        tuple(
            Frontend(Scope.EXTERNAL_IP, ip("192.0.2.1"), Port(1 + number), Use.CLUSTER)
            for number in range(frontends)
        ),
        (),
        (),
    )
    service = ServiceRouting(ObjectName("shop", "web"), (port,), affinity_timeout=LONGEST)
    assert learning_chains(service) == {Family.IPV4: f"learn4-86400-{share}"}


def learning(namespace: Namespace) -> set[str]:
    listing = namespace.run(["nft", "list", "chains", "inet"]).stdout
    words = (line.split() for line in listing.splitlines())
    return {each[1] for each in words if each[:1] == ["chain"] and chains.is_learning(each[1])}


def change(namespace: Namespace, dataplane: NftablesDataplane, routing: ServiceRouting) -> None:
    plan = dataplane.plan(Changes({routing.name: routing}))
    assert namespace.call(lambda: dataplane.commit(plan)) == ()


@pytest.mark.kernel
def test_unused_chains_are_deleted_and_used_ones_stay() -> None:
    with empty_namespace("timeouts") as namespace, programming(namespace) as dataplane:
        other = numbered(1, affinity=7)
        plan = dataplane.plan_full([other, numbered(0)], NodeRouting())
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        counts = []
        timeouts = sorted({chains.timeout_class(timeout) for timeout in range(1, LONGEST + 1)})
        for timeout in timeouts:
            change(namespace, dataplane, numbered(0, affinity=timeout))
            if timeout % 4 == 0:
                dataplane.tick()
                counts.append(len(learning(namespace)))
        assert max(counts) <= 50
        assert {"learn4-7-4096", "learn4-86400-4096"} <= learning(namespace)
        # A chain that was deleted is made again.
        change(namespace, dataplane, numbered(0, affinity=100))
        assert "learn4-100-4096" in learning(namespace)
        assert not dataplane.plan_full([other, numbered(0, affinity=100)], NodeRouting())
