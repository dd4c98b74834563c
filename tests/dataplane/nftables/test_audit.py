"""Audits: another program's silent writes are found, and the agent's own commits are not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import Changes, Drift, NodeRouting
from pyproxy.dataplane.nftables.audit import ExpectedRows
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import parse_address, parse_network
from pyproxy.policy.routing import ServiceRouting
from tests.dataplane.nftables.scenes import Scene, compiled, scenes
from tests.dataplane.nftables.test_dataplane import numbered, programming
from tests.waiting import until

NODE = NodeRouting((parse_network("10.128.0.0/9"),), (parse_address("172.30.0.11"),))
SERVICES = [numbered(number, 3, affinity=60 * (number % 2)) for number in range(200)]


def audited(dataplane: NftablesDataplane) -> list[Drift]:
    """Tick until the audit has ended; return what it found."""
    found: list[Drift] = []

    def ends() -> bool:
        found.extend(filter(None, [dataplane.tick()]))
        return not dataplane.is_auditing

    until(ends, "the end of the audit")
    return found


def start(dataplane: NftablesDataplane, services: Sequence[ServiceRouting]) -> None:
    dataplane.commit(dataplane.plan_full(services, NODE))
    assert dataplane.start_audit()


def commit(dataplane: NftablesDataplane, changes: Changes) -> None:
    assert not dataplane.commit(dataplane.plan(changes))


@given(scenes(), scenes())
def test_expected_rows_follow_commits(before: Scene, after: Scene) -> None:
    expected = ExpectedRows(before.routings(), before.rules)
    assert not expected.differing(compiled(list(before.routings().values()), before.rules))
    expected.update(after.routings(), after.rules)
    assert not expected.differing(compiled(list(after.routings().values()), after.rules))


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("command", "sets"),
    [
        ("delete element {t} services4 {{ 10.96.0.7 . tcp . 80 }}", {"services4"}),
        ("add element {t} cluster-ips4 {{ 192.0.2.1 }}", {"cluster-ips4"}),
        ("flush map {t} endpoints4", {"endpoints4"}),
        ("flush set {t} pods4", {"pods4"}),
        ("flush set {t} node-port-addresses4", {"node-port-addresses4"}),
        ("flush chain {t} nat-postrouting", None),
    ],
)
def test_a_write_that_nothing_announced(
    namespace: Namespace, command: str, sets: set[str] | None
) -> None:
    with programming(namespace) as dataplane:
        namespace.call(lambda: dataplane.commit(dataplane.plan_full(SERVICES, NODE)))
        namespace.run(["nft", *command.format(t=f"inet {TABLE}").split()])
        namespace.call(dataplane.start_audit)
        found = namespace.call(lambda: audited(dataplane))
        assert found == [Drift("", None if sets is None else frozenset(sets))]
        repair = dataplane.plan_repair(found[0].sets)
        assert repair
        namespace.call(lambda: dataplane.commit(repair))
        namespace.call(dataplane.start_audit)
        assert not namespace.call(lambda: audited(dataplane))


@pytest.mark.kernel
def test_the_agents_own_commits_meanwhile_are_no_drift(namespace: Namespace) -> None:
    with programming(namespace) as dataplane:
        namespace.call(lambda: start(dataplane, SERVICES))
        for round_ in range(60):
            number = round_ % 20
            changed = {
                numbered(number).name: numbered(number, 2, first=round_ % 5),
                numbered(number + 20).name: None,
            }
            namespace.call(partial(commit, dataplane, Changes(changed)))
        other = NodeRouting((parse_network("10.64.0.0/10"),), NODE.node_port_addresses)
        namespace.call(partial(commit, dataplane, Changes({}, other)))
        assert not namespace.call(lambda: audited(dataplane))


@pytest.mark.kernel
def test_a_silent_write_is_found_among_own_commits(namespace: Namespace) -> None:
    with programming(namespace) as dataplane:
        namespace.call(lambda: dataplane.commit(dataplane.plan_full(SERVICES, NODE)))
        silent = f"delete element inet {TABLE} services4 {{ 10.96.0.7 . tcp . 80 }}"
        namespace.run(["nft", *silent.split()])
        namespace.call(dataplane.start_audit)
        for first in range(40):
            changed = {numbered(9).name: numbered(9, 2, first=first)}
            namespace.call(partial(commit, dataplane, Changes(changed)))
        assert namespace.call(lambda: audited(dataplane)) == [Drift("", frozenset({"services4"}))]
