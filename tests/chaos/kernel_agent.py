"""An agent in a namespace without a source: a test passes it the events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import msgspec
from pyproxy_lab.namespace import Namespace

from pyproxy.agent.backoff import SyncBackoff
from pyproxy.agent.commit import Observers
from pyproxy.agent.core import Agent
from pyproxy.agent.loop import Chores, Inbox, Loop, Stop, watch_drift
from pyproxy.agent.node import NodeRules
from pyproxy.config.settings import LocalTraffic, Settings
from pyproxy.dataplane.nft.base_rules import Layout
from pyproxy.dataplane.nft.loader import read_layout
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.dataplane.nftables.readback import read_table
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import Problem
from pyproxy.health.state import Health
from pyproxy.model.address import parse_network
from pyproxy.model.events import Event, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service
from pyproxy.netlink.nfnetlink import Nfnetlink
from tests.agent.objects import HOSTNAME, NODE
from tests.exposition import nftables_metrics
from tests.waiting import until

HOUSEKEEPING_SECONDS = 0.2
OPTIONS = NftablesOptions()

Obj = Service | EndpointSlice | Node


class Snapshot(msgspec.Struct, frozen=True):
    """The agent's table as the kernel has it."""

    rows: Table
    layout: Layout


def snapshot(namespace: Namespace) -> Snapshot:
    netlink = namespace.call(Nfnetlink)
    try:
        return Snapshot(read_table(netlink), read_layout(netlink, TABLE))
    finally:
        netlink.close()


def first_lists(objects: Iterable[Obj], now: float) -> list[Event]:
    """Return a source's first events for these objects and a Node."""
    names: dict[Kind, set[ObjectName]] = {kind: set() for kind in Kind}
    events: list[Event] = []
    for obj in (*objects, NODE):
        events.append(Upsert(obj, now))
        match obj:
            case Service(name=name):
                names[Kind.SERVICE].add(name)
            case EndpointSlice(name=name):
                names[Kind.ENDPOINT_SLICE].add(name)
            case Node(name=text):
                names[Kind.NODE].add(ObjectName("", text))
    events += (Synced(kind, frozenset(found)) for kind, found in names.items())
    return events


class SteppedAgent:
    """An agent without threads: the test calls it in the namespace and moves its clock."""

    def __init__(
        self, namespace: Namespace, clock: Callable[[], float], options: NftablesOptions = OPTIONS
    ) -> None:
        self.namespace = namespace
        self._clock = clock
        self.metrics = nftables_metrics()
        self.health = Health(30.0)
        self.reported: list[Problem] = []
        self.dataplane = namespace.call(lambda: NftablesDataplane(options))
        namespace.call(self.dataplane.prepare)
        settings = Settings(
            HOSTNAME, local_traffic=LocalTraffic(cluster_networks=(parse_network("10.244.0.0/16"),))
        )
        observers = Observers(self.metrics, self.health, (), clock, time.time, self.reported.append)
        self.agent: Agent[NftablesPlan] = Agent(
            self.dataplane, NodeRules(settings, lambda: ()), SyncBackoff(0.0), observers
        )

    def start(self, *objects: Obj) -> Snapshot:
        """Pass the first lists, commit them, and return the kernel state."""

        def commit() -> None:
            for event in first_lists(objects, self._clock()):
                self.agent.handle_event(event)
            self.agent.sync()

        self.namespace.call(commit)
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        return snapshot(self.namespace)

    def close(self) -> None:
        self.dataplane.close()

    def metric(self, metric: str, **labels: str) -> float:
        """Return one sample of a metric, 0 if there is none."""
        for family in self.metrics.collect():
            for sample in family.samples:
                if sample.name == metric and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    def repairs(self) -> dict[str, float]:
        """Return the number of repairs by kind of object."""
        return {
            sample.labels["object"]: sample.value
            for family in self.metrics.collect()
            for sample in family.samples
            if sample.name == "pyproxy_drift_repairs_total"
        }


class RunningAgent(SteppedAgent):
    """A context manager in which the agent's threads run, as `pyproxy run` starts them."""

    def __init__(self, namespace: Namespace, options: NftablesOptions = OPTIONS) -> None:
        super().__init__(namespace, time.monotonic, options)
        self.inbox: Inbox = Inbox()
        self._loop = Loop(
            self.agent, self.inbox, Chores(self.agent.audit, HOUSEKEEPING_SECONDS), self.health
        )
        self._thread = threading.Thread(target=namespace.call, args=(self._loop.run,), daemon=True)

    def __enter__(self) -> Self:
        watch_drift(self.dataplane, self.inbox.put)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.inbox.put(Stop())
        self._thread.join()
        self.close()

    def start(self, *objects: Obj) -> Snapshot:
        """Pass the first lists, wait for their commit, and return the kernel state."""
        for event in first_lists(objects, time.monotonic()):
            self.inbox.put(event)
        until(self.health.is_healthy, "the first commit")
        return self.snapshot()

    def apply(self, *objects: Obj) -> None:
        for obj in objects:
            self.inbox.put(Upsert(obj, time.monotonic()))

    def nft(self, text: str) -> None:
        """Change the table as another program would."""
        self.namespace.run(["nft", "-f", "-"], text=text)
