"""Repairs of other programs' writes: their cost is that of the write, not of the cluster."""

from collections.abc import Iterator
from typing import Any

import pytest
from pyproxy_lab.namespace import Namespace

from pyproxy.agent.service_router import ServiceRouter
from pyproxy.dataplane.interface import Drift, NodeRouting
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.batches import PackedBatch
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.model.events import Upsert
from pyproxy.model.objects import ObjectName
from pyproxy.netlink import elements
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.nfnetlink import Message
from tests.builders import endpoint_slice, service
from tests.chaos.kernel_agent import Obj, SteppedAgent
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

COUNT = 50
OBJECTS: list[Obj] = [
    *(service(f"s{n}", n) for n in range(1, COUNT)),
    *(endpoint_slice(f"s{n}", [f"10.244.1.{n}"]) for n in range(1, COUNT)),
]
KEY = "10.96.0.7 . tcp . 80"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Stage(SteppedAgent):
    """An agent whose dumps of sets, and whose routings of Services, are recorded."""

    def __init__(self, namespace: Namespace, patch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        super().__init__(namespace, self.clock)
        self.whole = self.start(*OBJECTS)
        self.read: list[str] = []
        self.routed: list[str] = []
        dump, route = elements.get_elements, ServiceRouter._route

        def get_elements(table: str, name: str) -> Message:
            self.read.append(name)
            return dump(table, name)

        def route_one(router: ServiceRouter, name: ObjectName, node: NodeRouting) -> Any:
            self.routed.append(name.name)
            return route(router, name, node)

        patch.setattr("pyproxy.netlink.elements.get_elements", get_elements)
        patch.setattr(ServiceRouter, "_route", route_one)

    def after(self, nft: str) -> Drift:
        """Write as another program, and return the drift that is announced."""
        self.namespace.run(["nft", nft])
        drift = self.namespace.call(self.dataplane.wait_for_drift)
        assert drift is not None
        self.agent.drifted(drift)
        return drift

    def sync(self, after: float = 60.0) -> None:
        self.clock.now += after
        self.read.clear()
        self.namespace.call(self.agent.sync)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with empty_namespace("drift") as namespace:
        found = Stage(namespace, monkeypatch)
        yield found
        found.close()


def test_only_the_set_that_was_written_is_read_back(stage: Stage) -> None:
    drift = stage.after(f"delete element inet pyproxy services4 {{ {KEY} }}")
    assert drift.sets == frozenset({"services4"})
    stage.sync()
    assert stage.read == ["services4"]
    assert stage.repairs() == {"element": 1}
    assert stage.snapshot() == stage.whole
    # The repair is verified, again by this set alone, and there is nothing else to repair.
    assert stage.agent.due() is not None
    stage.sync()
    assert stage.read == ["services4"]
    assert stage.repairs() == {"element": 1}
    assert stage.agent.due() is None
    assert not stage.routed


@pytest.mark.parametrize("harm", ["flush ruleset", "delete table inet pyproxy"])
def test_a_lost_table_is_written_again_without_the_policy(stage: Stage, harm: str) -> None:
    stage.after(harm)
    stage.sync()
    assert not stage.read  # there is no table
    assert stage.snapshot() == stage.whole
    assert not stage.routed


def test_changes_of_the_cluster_follow_the_repair(stage: Stage) -> None:
    stage.after(f"delete element inet pyproxy services4 {{ {KEY} }}")
    changed = endpoint_slice("s7", ["10.244.1.7", "10.244.2.7"])
    stage.agent.handle_event(Upsert(changed, stage.clock.now))
    stage.sync()
    assert stage.snapshot() == stage.whole
    stage.sync(after=0.0)
    assert stage.routed == ["s7"]
    assert len(stage.snapshot().rows["endpoints4"]) == COUNT


def test_the_loading_of_own_rules_is_no_write_of_another_program(stage: Stage) -> None:
    stage.after("flush chain inet pyproxy nat-postrouting")
    stage.sync()
    assert stage.repairs() == {"ruleset": 1, "chain": 1}
    # A notification of another write is the next one: none of our own came before it.
    drift = stage.after(f"delete element inet pyproxy services4 {{ {KEY} }}")
    assert drift.sets == frozenset({"services4"})


def test_a_table_that_is_replaced_for_counters_is_no_write_of_another_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with empty_namespace("drift") as namespace:
        before = Stage(namespace, monkeypatch)
        before.close()
        clock = Clock()
        after = SteppedAgent(namespace, clock, NftablesOptions(endpoint_counters=True))
        after.start(*OBJECTS)
        # The table was deleted, so the first sync failed and a second one wrote the elements.
        clock.now += 60.0
        namespace.call(after.agent.sync)
        assert len(after.snapshot().rows["services4"]) == COUNT - 1
        clock.now += 60.0
        namespace.run(["nft", f"delete element inet pyproxy services4 {{ {KEY} }}"])
        drift = namespace.call(after.dataplane.wait_for_drift)
        # This is the first drift: none was due to the agent's own transactions.
        assert drift is not None
        assert drift.sets == frozenset({"services4"})
        assert not after.repairs()
        after.close()


def test_flushed_maps_are_filled_in_batches_of_whole_services(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = stage.dataplane._writer
    monkeypatch.setattr(writer, "batch_rows", 20)
    stage.after("flush map inet pyproxy endpoints4; flush map inet pyproxy services4")
    batches: list[NftablesPlan] = []
    send = writer._send

    def record(batch: PackedBatch) -> MessageError | None:
        batches.append(batch.plan)
        return send(batch)

    monkeypatch.setattr(writer, "_send", record)
    stage.sync()
    assert stage.snapshot() == stage.whole
    assert len(batches) > 2
    for each in batches:
        frontends = {key[:-4] for key in each.delta.add["endpoints4"]}
        assert frontends == set(each.delta.add["services4"])
