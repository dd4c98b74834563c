"""A fake agent: snapshots and changes that tests make up."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeRouting, TableUsage
from pyproxy.health.state import HealthReport
from pyproxy.inspect.snapshot import Change, Snapshot
from pyproxy.model.address import Port, Protocol, parse_address
from pyproxy.model.objects import ObjectName, Service, ServicePort
from pyproxy.source.api_objects import ServiceLookup

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'<script>"


def snapshot(*services: Service) -> Snapshot:
    return Snapshot(
        settings=Settings("node-a"),
        started=1000.0,
        now=1060.0,
        health=HealthReport(10**9, 10**9, healthy=True, settled=True, node_eligible=True),
        api_age=0.5,
        services={each.name: each for each in services},
        slices={},
        node=None,
        node_routing=NodeRouting(),
        routings={},
        problems=tuple(problem for each in services for problem in each.problems),
        pending=0,
        syncs=3,
    )


def service(name: str, address: str = "10.96.0.1", port: int = 80) -> Service:
    return Service(
        ObjectName("shop", name),
        (ServicePort("http", Protocol.TCP, Port(port), node_port=Port(0)),),
        (parse_address(address),),
    )


class FakeAgent:
    """An AgentView of a fixed snapshot, and of the batches that a test puts into a queue."""

    def __init__(self, fixed: Snapshot) -> None:
        self.fixed = fixed
        self.changes: queue.Queue[Sequence[Change]] = queue.Queue()

    def snapshot(self) -> Snapshot:
        return self.fixed

    def table_usage(self) -> tuple[TableUsage, ...]:
        return ()

    def flow_offload(self) -> None:
        return None

    def look_up(self, name: ObjectName) -> ServiceLookup:
        return ServiceLookup(service_skipped="no API server")

    @contextmanager
    def watch(self) -> Iterator[Iterator[Sequence[Change]]]:
        yield self._batches()

    def _batches(self) -> Iterator[Sequence[Change]]:
        while True:
            try:
                yield self.changes.get(timeout=0.02)
            except queue.Empty:
                yield ()
