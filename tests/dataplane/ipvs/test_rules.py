"""The table of rules in a real kernel, with IPVS in dicts beside it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.ipvs import dataplane as module
from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane
from pyproxy.dataplane.ipvs.rules import RulesTable
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.model.address import Family, Port, parse_address, parse_network
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Scope, ServiceRouting, Use
from tests.dataplane.ipvs.fake import FakeKernel
from tests.dataplane.ipvs.test_dataplane import NODE, ONE, TWO, many, of, service
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

PODS = NodeRouting((parse_network("10.244.0.0/16"), parse_network("fd10::/16")))
BOTH = frozenset(Family)
ANSWERS = of(
    service(ONE, TWO),
    service(
        *(ONE, TWO),
        use=Use.SPLIT,
        scope=Scope.LOAD_BALANCER,
        local=(ONE,),
        address=parse_address("192.0.2.1"),
        name=ObjectName("shop", "split"),
        source_ranges=(parse_network("203.0.113.0/24"), parse_network("198.51.100.0/24")),
        health_check_port=Port(32000),
    ),
    service(ONE, scope=Scope.NODE_PORT, address=NODE, name=ObjectName("shop", "node")),
    service(use=Use.REJECT, address=parse_address("10.96.0.2"), name=ObjectName("shop", "no")),
    service(use=Use.DROP, address=parse_address("10.96.0.3"), name=ObjectName("shop", "drop")),
)


def load(table: RulesTable, options: Options) -> None:
    table.load(options)
    table.seal(options)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with empty_namespace("rules") as made:
        yield made


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(pod_families=BOTH),
        Options(pod_interface="cni0", masquerade_all=True),
        Options(pod_interface="veth*"),
    ],
)
def test_the_rules_load_and_their_listing_loads_again(
    namespace: Namespace, options: Options
) -> None:
    table = namespace.call(RulesTable)
    assert not table.is_loaded(options)
    namespace.call(lambda: load(table, options))
    assert table.is_loaded(options)
    listed = namespace.run(["nft", "list", "ruleset"]).stdout
    namespace.run(["nft", "flush", "ruleset"])
    namespace.run(["nft", "-f", "-"], text=listed)
    assert namespace.run(["nft", "list", "ruleset"]).stdout == listed
    table.close()


def test_rules_of_other_options_are_replaced_and_elements_stay(namespace: Namespace) -> None:
    table = namespace.call(RulesTable)
    namespace.call(lambda: load(table, Options()))
    namespace.run(["nft", "add element inet pyproxy-ipvs addresses4 { 10.96.0.1 }"])
    namespace.call(lambda: load(table, Options(pod_families=BOTH)))
    assert table.is_loaded(Options(pod_families=BOTH))
    assert not table.is_loaded(Options())
    assert table.read() == {"addresses4": {parse_address("10.96.0.1"): b""}}
    table.close()


@pytest.mark.parametrize(
    "harm", ["add chain inet pyproxy-ipvs stray", "add set inet pyproxy-ipvs s { type mark; }"]
)
def test_chains_and_sets_of_another_version_are_deleted(namespace: Namespace, harm: str) -> None:
    table = namespace.call(RulesTable)
    namespace.call(lambda: load(table, Options()))
    before = namespace.run(["nft", "list", "ruleset"]).stdout
    namespace.run(["nft", harm])
    namespace.call(lambda: load(table, Options()))
    assert namespace.run(["nft", "list", "ruleset"]).stdout == before
    table.close()


@pytest.mark.parametrize("harm", ["flush ruleset", "flush chain inet pyproxy-ipvs services"])
def test_changes_to_the_table_are_repaired(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    kernel = FakeKernel()
    monkeypatch.setattr(module, "Kernel", lambda: kernel)

    def begin(dataplane: IpvsDataplane) -> None:
        routings: list[ServiceRouting] = list(ANSWERS.values())
        plan = dataplane.plan_full(routings, PODS)
        assert not dataplane.commit(plan)

    dataplane = namespace.call(lambda: IpvsDataplane(Options()))
    namespace.call(dataplane.prepare)
    namespace.call(lambda: begin(dataplane))
    right = namespace.run(["nft", "list", "ruleset"]).stdout
    assert "192.0.2.1 . tcp . 80 : 0x50000000" in right
    namespace.run(["nft", harm])
    drift = dataplane.wait_for_drift()
    assert drift is not None
    assert drift.by.startswith("nft")
    namespace.call(lambda: begin(dataplane))
    assert sorted(namespace.run(["nft", "list", "ruleset"]).stdout.split()) == sorted(right.split())
    sent = dataplane.messages_sent
    namespace.call(lambda: begin(dataplane))
    assert dataplane.messages_sent == sent
    namespace.call(dataplane.cleanup)
    assert not kernel.table
    assert not namespace.run(["nft", "list", "ruleset"]).stdout
    dataplane.close()


def test_a_first_sync_starts_nft_once_with_the_same_text_for_any_number_of_services(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[object, object]] = []

    class Noted(subprocess.Popen[Any]):
        def communicate(self, input: Any = None, timeout: float | None = None) -> Any:  # noqa: A002
            started.append((self.args, input))
            return super().communicate(input, timeout)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    for each in ("fork", "posix_spawn", "system"):
        monkeypatch.setattr(os, each, forbidden)
    monkeypatch.setattr(subprocess, "Popen", Noted)
    for count in (0, 5_000):
        monkeypatch.setattr(module, "Kernel", FakeKernel)
        namespace.call(partial(first_sync, count))
    assert len(started) == 2
    assert started[0] == started[1]
    assert started[0][0] == ["nft", "-f", "-"]


def first_sync(count: int) -> None:
    dataplane = IpvsDataplane(Options())
    dataplane.prepare()
    assert not dataplane.commit(dataplane.plan_full(many(count), PODS))
    sent = dataplane.messages_sent
    assert sent >= count
    dataplane.cleanup()
    dataplane.close()
