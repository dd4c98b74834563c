"""An agent over a table in memory: the real source, loop and core, without a kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from pyproxy_lab.apiserver.resources import ENDPOINT_SLICES, NODES, SERVICES
from pyproxy_lab.apiserver.server import ApiServer, Handler
from pyproxy_lab.apiserver.settings import Settings as ServerSettings

from pyproxy.agent.backoff import SyncBackoff
from pyproxy.agent.commit import Observers
from pyproxy.agent.core import Agent
from pyproxy.agent.loop import Chores, Inbox, Loop, Stop
from pyproxy.agent.node import NodeRules
from pyproxy.config.settings import LocalTraffic, Settings
from pyproxy.dataplane.interface import Failure
from pyproxy.dataplane.nft.schema import Table
from pyproxy.errors import Problem
from pyproxy.health.state import Health
from pyproxy.model.address import parse_network
from pyproxy.model.events import Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.source.client import Client
from pyproxy.source.decode import NotProxied, decode_object
from pyproxy.source.kubernetes import KubernetesSource
from pyproxy.source.media_types import DEFAULT_ACCEPT
from tests.agent.objects import HOSTNAME, PlannedTable, TableDataplane
from tests.chaos.objects import numbered_service, numbered_slice
from tests.exposition import nftables_metrics
from tests.source.scripted import Pace, client_of
from tests.waiting import PATIENCE, until

Object = dict[str, Any]
NETWORK = parse_network("10.244.0.0/16")
TABLES = ((Kind.SERVICE, SERVICES), (Kind.ENDPOINT_SLICE, ENDPOINT_SLICES), (Kind.NODE, NODES))


def node() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": HOSTNAME},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.11"}]},
    }


class WatchedTable(TableDataplane):
    """A dataplane in memory; `lost` are rows that had to stay and did not."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: Table = {}
        self.lost: list[str] = []

    def keep(self) -> None:
        """Record every later loss of a row that is there now."""
        self._kept = {name: dict(rows) for name, rows in self.kernel.items()}

    def commit(self, plan: PlannedTable) -> tuple[Failure, ...]:
        failures = super().commit(plan)
        for name, rows in self._kept.items():
            rows_now: Mapping[bytes, Any] = self.kernel.get(name, {})
            self.lost += [f"{name} {key.hex()}" for key in rows if rows_now.get(key) != rows[key]]
        return failures


class TableAgent:
    """One agent without a kernel, whose source, loop and core run in their threads."""

    def __init__(
        self, client: Client, silence: float, clock: Pace | None, accept: str = DEFAULT_ACCEPT
    ) -> None:
        self.dataplane = WatchedTable()
        self.metrics = nftables_metrics()
        self.health = Health(30.0)
        self.reported: list[Problem] = []
        self.inbox: Inbox = Inbox()
        self.clock = clock or Pace()
        settings = Settings(HOSTNAME, local_traffic=LocalTraffic(cluster_networks=(NETWORK,)))
        observers = Observers(
            self.metrics, self.health, [], time.monotonic, time.time, self.reported.append
        )
        self.agent = Agent(
            self.dataplane, NodeRules(settings, lambda: ()), SyncBackoff(0.0), observers
        )
        self.source = KubernetesSource(
            client, HOSTNAME, self.inbox.put, silence=silence, clock=self.clock, accept=accept
        )
        self._loop = Loop(self.agent, self.inbox, Chores(period=0.05), self.health)
        self._thread = threading.Thread(target=self._loop.run, name="loop")

    @contextmanager
    def running(self) -> Iterator[TableAgent]:
        self._thread.start()
        self.source.start()
        try:
            yield self
        finally:
            self.source.stop()
            self.inbox.put(Stop())
            self._thread.join(PATIENCE)

    def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        def checked() -> object:
            assert self._thread.is_alive(), "the agent's thread has ended"
            return condition()

        until(checked, what, seconds)

    def until_equal(self, server: ApiServer, seconds: float = PATIENCE) -> None:
        """Wait until the table has the rows of the server's objects."""
        wanted = desired(server)
        self.until(
            lambda: self.dataplane.kernel == wanted, "the table has the desired rows", seconds
        )


def desired(server: ApiServer) -> Table:
    """Return the rows of the server's objects, compiled by a new agent."""

    def bodies() -> list[tuple[Kind, bytes]]:
        store = server.registry.store
        return [(kind, each.body) for kind, of in TABLES for each in store.table(of).current("/")]

    names: dict[Kind, set[ObjectName]] = {kind: set() for kind in Kind}
    events: list[Event] = []
    for kind, body in server.call(bodies):
        reading = decode_object(kind, body)
        if isinstance(reading.value, Problem):
            events.append(InvalidObject(reading.value))
        elif not isinstance(reading.value, NotProxied):
            assert reading.name is not None
            names[kind].add(reading.name)
            events.append(Upsert(reading.value))
    rig = TableAgent(client_of("http://127.0.0.1:1"), 1.0, None)
    for event in events:
        rig.agent.handle_event(event)
    for kind in Kind:
        rig.agent.handle_event(Synced(kind, frozenset(names[kind])))
    rig.agent.sync()
    return rig.dataplane.kernel


@contextmanager
def api_server(
    port: int = 0, services: int = 3, more: Iterable[Object] = (), **settings: Any
) -> Iterator[ApiServer]:
    """Run a server with a Node and `services` Services of two endpoints each.

    It responds with 503 until it has them all, because an agent would believe an empty list.
    """
    complete = threading.Event()

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request) if complete.is_set() else web.Response(status=503)

    with ApiServer.running(ServerSettings(port=port, **settings), [gate]) as server:
        server.load([node()])
        for number in range(services):
            server.load(
                [numbered_service(number), numbered_slice(number, (2 * number + 1, 2 * number + 2))]
            )
        server.load(more)
        complete.set()
        yield server


@contextmanager
def agent(
    *servers: ApiServer | str,
    silence: float = 5.0,
    clock: Pace | None = None,
    accept: str = DEFAULT_ACCEPT,
) -> Iterator[TableAgent]:
    """Run an agent with these API servers."""
    urls = [each if isinstance(each, str) else each.url for each in servers]
    with TableAgent(client_of(*urls), silence, clock, accept).running() as rig:
        yield rig
