"""The cost of one change in messages and bytes, by the agent's own metrics."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from pyproxy_lab.apiserver.server import ApiServer

from tests.agent.live import Object, Process, Stage, endpoint_slice, service
from tests.waiting import PATIENCE

pytestmark = pytest.mark.kernel

ENDPOINTS = 10
NODE_PORT_ADDRESSES = ("list", "set", "inet", "pyproxy", "node-port-addresses4")


class Cost(NamedTuple):
    transactions: int
    messages: int
    size: int


def crowd(services: int) -> list[Object]:
    return [
        obj
        for number in range(services)
        for obj in (
            service(f"s-{number}", f"10.{97 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"),
            slice_of(number, ENDPOINTS),
        )
    ]


def slice_of(number: int, count: int, note: str = "") -> Object:
    backends = (
        f"10.{128 + (pod >> 16)}.{pod >> 8 & 255}.{pod & 255}"
        for pod in range(number * ENDPOINTS, number * ENDPOINTS + count)
    )
    return endpoint_slice(f"s-{number}", backends, note)


class Meter:
    """Reads the cost of one change at a time."""

    def __init__(self, stage: Stage, agent: Process, server: ApiServer) -> None:
        self._stage, self._agent, self._server = stage, agent, server
        self._before = self._total()

    def cost(self, *objects: Object) -> Cost:
        """Write objects, the last of which changes something, and wait for that to be counted.

        Without objects, another change was made.
        """
        self._server.load(objects)
        self._agent.does(self._is_counted, "a change that costs something")
        now = self._total()
        cost = Cost(*(b - a for a, b in zip(self._before, now, strict=True)))
        self._before = now
        return cost

    def _is_counted(self) -> bool:
        # The agent updates one counter after the other, so a scrape may come in between.
        now = self._total()
        return all(a != b for a, b in zip(self._before, now, strict=True)) and now == self._total()

    def _total(self) -> Cost:
        metrics = self._stage.metrics()
        names = ("kernel_writes", "dataplane_messages", "dataplane_bytes")
        return Cost(*(int(metrics[f"pyproxy_{name}_total"]) for name in names))


def costs(stage: Stage, services: int) -> dict[str, Cost]:
    with stage.server() as server:
        server.load(crowd(services))
        with stage.agent(server.url) as agent:
            agent.does(lambda: stage.health() == 200, "the first commit")
            meter = Meter(stage, agent, server)
            last = services - 1
            found = {
                "an endpoint goes": meter.cost(slice_of(last, ENDPOINTS - 1)),
                "an endpoint comes": meter.cost(slice_of(last, ENDPOINTS)),
                "most endpoints go": meter.cost(slice_of(0, 2)),
                # Events that change nothing, and then one that does, so that all have been handled.
                "nothing, then one goes": meter.cost(
                    slice_of(1, ENDPOINTS, "a note"),
                    service("s-1", "10.97.0.1"),
                    slice_of(1, ENDPOINTS, "another note"),
                    slice_of(last, ENDPOINTS - 1),
                ),
            }
    stage.nft("flush", "ruleset")
    return found


def test_a_change_costs_the_same_whatever_the_number_of_services(stage: Stage) -> None:
    few, many = costs(stage, 100), costs(stage, 2_000)
    assert few == many
    assert few["an endpoint goes"].messages == few["an endpoint comes"].messages == 1
    assert few["nothing, then one goes"] == few["an endpoint goes"]


def test_an_address_of_the_node_is_one_message_whatever_the_number_of_node_ports(
    stage: Stage,
) -> None:
    services = [service(f"s-{n}", f"10.97.0.{n}", 30_000 + n) for n in range(100)]
    with stage.server() as server:
        server.load([*services, *(slice_of(number, ENDPOINTS) for number in range(100))])
        with stage.agent(server.url, "--nodeport-addresses=0.0.0.0/0") as agent:
            agent.does(lambda: stage.health() == 200, "the first commit")
            meter = Meter(stage, agent, server)
            for verb in ("add", "del"):
                stage.here.ip([f"addr {verb} 203.0.113.7/32 dev lo"])
                cost = meter.cost()
                assert (cost.transactions, cost.messages) == (1, 1)
                listed = "203.0.113.7" in stage.nft(*NODE_PORT_ADDRESSES)
                assert listed is (verb == "add")
    stage.nft("flush", "ruleset")


def test_a_change_of_nothing_is_no_transaction(stage: Stage) -> None:
    with stage.server() as server:
        server.load(crowd(100))
        with stage.agent(server.url) as agent, stage.commits() as commits:
            agent.does(lambda: stage.health() == 200, "the first commit")
            assert commits.count()
            for note in ("one", "two", "three"):
                server.load([slice_of(number, ENDPOINTS, note) for number in range(100)])
            server.load([slice_of(0, 9)])
            assert commits.count(seconds=PATIENCE) == 1
            stage.until_served(agent, server, "the one change in the kernel")
            assert commits.count() == 0
