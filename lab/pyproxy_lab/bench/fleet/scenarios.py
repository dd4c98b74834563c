"""Scenarios of a fleet: start, rollout, restarts of the API server, a partition, an hour."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from pyproxy_lab.bench import orders
from pyproxy_lab.bench.fleet import fleets
from pyproxy_lab.bench.fleet.counts import Counts
from pyproxy_lab.bench.fleet.fleets import Client, Fleet, Mark
from pyproxy_lab.bench.fleet.server import Order, Steady
from pyproxy_lab.bench.orders import OrderedServer
from pyproxy_lab.bench.shape import (
    FRESH_POD,
    SLICE_LIMIT,
    Size,
    endpoint_slice,
    pod_ip,
    service,
    service_name,
)
from pyproxy_lab.namespace import LabError

AT_ONCE = 25
"""Pods that a step of the rollout replaces."""

HOUR = 3600.0
KINDS = 3
"""Kinds that each client watches."""

_EVENTS = "create events"
_POLL = 0.05
_STEADY_SIZE = Size(10, 10)
_MODULE = "pyproxy_lab.bench.fleet.server"


class Scenario(StrEnum):
    """The scenarios that are counted."""

    START = "start"
    ROLLOUT = "rollout"
    RESTART = "restart"
    RESTART_NEW = "restart without history"
    PARTITION = "partition"
    HOUR = "steady hour"


WORDS = {
    Scenario.START: "all start at once: lists, and an Event each",
    Scenario.ROLLOUT: "the pods of one Service are replaced, 25 at a time",
    Scenario.RESTART: "the API server ends, and another one that knows its history responds",
    Scenario.RESTART_NEW: "the same without its history: each earlier version is 410",
    Scenario.PARTITION: "the network loses all connections, and is back",
    Scenario.HOUR: "an hour in which only the status of Nodes changes",
}


class Plan(msgspec.Struct, frozen=True):
    """The fleet and the cluster.

    `away` is how many seconds the server is away. The hour takes `hour` seconds. `patience` is the
    limit of each step in seconds.
    """

    nodes: int
    size: Size
    pods: int
    away: float
    hour: float
    patience: float

    @property
    def steps(self) -> int:
        """The number of endpoint changes of the rollout."""
        return self.pods // AT_ONCE


class Bench:
    """Runs the scenarios of one kind of client."""

    def __init__(self, plan: Plan, client: Client, step: Callable[[str], None]) -> None:
        self._plan = plan
        self._client = client
        self._step = step
        self._marks = 0

    def run(self) -> dict[Scenario, Counts]:
        """Count all scenarios. Raises LabError."""
        found: dict[Scenario, Counts] = {}
        with self._running(self._plan.size, 1.0) as (server, fleet):
            for scenario, action in (
                (Scenario.START, self._start),
                (Scenario.ROLLOUT, self._rollout),
                (Scenario.RESTART, self._restart),
                (Scenario.RESTART_NEW, self._restart_without_history),
                (Scenario.PARTITION, self._partition),
            ):
                self._step(scenario.value)
                if scenario is Scenario.ROLLOUT:
                    self._prepare_rollout(server, fleet)
                before = server.order(Order())
                action(server, fleet)
                found[scenario] = server.order(Order()).since(before)
        if self._plan.hour:
            self._step(Scenario.HOUR.value)
            found[Scenario.HOUR] = self._hour()
        return found

    @contextmanager
    def _running(self, size: Size, speed: float) -> Iterator[tuple[OrderedServer[Counts], Fleet]]:
        plan = self._plan
        with (
            tempfile.TemporaryDirectory(prefix="pyproxy-fleet-") as folder,
            orders.running(_MODULE, size, Counts, plan.nodes, speed) as server,
            fleets.running(self._client, server.url, Path(folder), speed, plan.patience) as fleet,
        ):
            yield server, fleet

    def _start(self, server: OrderedServer[Counts], fleet: Fleet) -> None:
        for number in range(self._plan.nodes):
            fleet.start(number)
        fleet.await_lists(KINDS * self._plan.nodes)
        self._await_events(server)

    def _await_events(self, server: OrderedServer[Counts]) -> None:
        """Wait for the Event of each client's start, which pyproxy delays by up to 10 s."""
        wanted = self._plan.nodes
        self._await(server, lambda counts: counts.requests.get(_EVENTS) == wanted, "Events exist")

    def _await(
        self, server: OrderedServer[Counts], condition: Callable[[Counts], bool], what: str
    ) -> None:
        deadline = time.monotonic() + self._plan.patience
        while not condition(server.order(Order())):
            if time.monotonic() > deadline:
                raise LabError(f"not within {self._plan.patience:g} s: {what}")
            time.sleep(_POLL)

    def _prepare_rollout(self, server: OrderedServer[Counts], fleet: Fleet) -> None:
        number, pods = self._plan.size.services, self._plan.pods
        parts = range(-(-pods // SLICE_LIMIT))
        slices = [self._rollout_slice(part, 0) for part in parts]
        server.order(Order(put=[service(number), *slices]))
        self._mark(server, fleet)

    def _rollout(self, server: OrderedServer[Counts], fleet: Fleet) -> None:
        for step in range(self._plan.steps):
            done = (step + 1) * AT_ONCE
            part = (done - 1) // SLICE_LIMIT
            server.order(Order(put=[self._rollout_slice(part, done)]))
        self._mark(server, fleet)

    def _rollout_slice(self, part: int, done: int) -> dict[str, Any]:
        """Write a slice of the Service after `done` of its pods have been replaced."""
        pods = self._plan.pods
        mine = range(part * SLICE_LIMIT, min((part + 1) * SLICE_LIMIT, pods))
        numbers = [FRESH_POD + each + (pods if each >= done else 0) for each in mine]
        return endpoint_slice(self._plan.size.services, numbers, part)

    def _restart(self, server: OrderedServer[Counts], fleet: Fleet) -> None:
        self._cut(server, fleet, Order(cut=True))

    def _restart_without_history(self, server: OrderedServer[Counts], fleet: Fleet) -> None:
        # Without a change there is no version that could be lost.
        self._cut(server, fleet, Order(cut=True, put=[service(0)]), forget=True)

    def _partition(self, server: OrderedServer[Counts], fleet: Fleet) -> None:
        fleet.partition(is_cut=True)
        self._cut(server, fleet, Order(cut=True))
        fleet.partition(is_cut=False)

    def _cut(
        self,
        server: OrderedServer[Counts],
        fleet: Fleet,
        order: Order,
        *,
        forget: bool = False,
    ) -> None:
        server.order(order)
        time.sleep(self._plan.away)
        server.order(Order(forget=forget, open=True))
        self._mark(server, fleet)
        # The other kinds may still wait for their next attempt.
        wanted = KINDS * self._plan.nodes
        self._await(server, lambda counts: counts.watches == wanted, "watches are open")
        # A watch is open while its list is still being sent.
        fleet.await_lists(server.order(Order()).lists)

    def _mark(self, server: OrderedServer[Counts], fleet: Fleet) -> None:
        """Change the slice of the first Service, and wait until all clients know it.

        A watch has its events in order, so they know all earlier changes of slices too.
        """
        self._marks += 1
        pod = FRESH_POD - self._marks
        counts = server.order(Order(put=[endpoint_slice(0, [pod])]))
        fleet.await_slice(Mark(f"{service_name(0)}-0", pod_ip(pod), counts.revision))

    def _hour(self) -> Counts:
        speed = HOUR / self._plan.hour
        with self._running(_STEADY_SIZE, speed) as (server, fleet):
            # One after the other, because a client's patience is as short as its hour.
            for number in range(self._plan.nodes):
                fleet.start(number)
                fleet.await_lists(KINDS * (number + 1))
            self._await_events(server)
            before = server.order(Order())
            return server.order(Order(steady=Steady(HOUR))).since(before)
