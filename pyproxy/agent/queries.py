"""Questions to a running agent: taken in its thread, answered in the asker's.

What is taken is a few shallow copies of mappings whose values are frozen, well below a millisecond
for 10,000 Services, so that a question costs a sync next to nothing.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import msgspec

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.core import Agent, Commit
from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import TableUsage
from pyproxy.errors import PyproxyError
from pyproxy.health.state import Health
from pyproxy.inspect.snapshot import Change, Repair, Snapshot, Sync
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting
from pyproxy.source.api_objects import ServiceLookup
from pyproxy.source.client import Client
from pyproxy.source.lookup import look_up

log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds that a question waits for the agent's thread; a first sync takes a few."""

_QUEUE = 10_000
"""Changes that one watcher may be behind before it loses some."""


_SIGN_OF_LIFE = 1.0
"""Seconds without a change after which a watcher is told that there is none."""


class BusyError(PyproxyError):
    """The agent's thread does not come to a question."""


class Query(msgspec.Struct, frozen=True, eq=False):
    """Something to be done in the agent's thread; it raises nothing and waits for nothing."""

    run: Callable[[], None]


class ProgrammedState:
    """A follower that remembers what was programmed last, and tells those who watch.

    Its methods are for the agent's thread, but for `watched`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: list[queue.Queue[Change]] = []
        self.routings: dict[ObjectName, ServiceRouting] = {}
        self.syncs = 0
        self.last_sync: Sync | None = None
        self.repairs = 0
        self.last_repair: Repair | None = None

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:  # noqa: ARG002
        """Remember a commit."""
        if self._watchers:
            self._tell(commit)
        if commit.full:
            gone = self.routings.keys() - commit.routings.keys() - commit.rejected
            for name in gone:
                del self.routings[name]
        for name, routing in commit.routings.items():
            if routing is None:
                self.routings.pop(name, None)
            else:
                self.routings[name] = routing
        self.syncs += 1
        self.last_sync = Sync(commit.ended, commit.took, len(commit.routings), commit.full)
        if commit.repair is not None:
            self.repairs += 1
            self.last_repair = commit.repair

    @contextmanager
    def watched(self) -> Iterator[queue.Queue[Change]]:
        """Have every change put into a queue of its own; a full one loses what comes."""
        changes: queue.Queue[Change] = queue.Queue(_QUEUE)
        with self._lock:
            self._watchers = [*self._watchers, changes]
        try:
            yield changes
        finally:
            with self._lock:
                self._watchers = [each for each in self._watchers if each is not changes]

    def _tell(self, commit: Commit) -> None:
        for name, routing in commit.routings.items():
            before = self.routings.get(name)
            if routing == before:
                continue
            change = Change(
                str(name),
                "removed" if routing is None else "changed" if before else "added",
                _endpoints(routing),
                commit.ended,
                commit.took,
                commit.latency,
            )
            for watcher in self._watchers:
                try:
                    watcher.put_nowait(change)
                except queue.Full:
                    log.debug("a watcher does not keep up, and loses a change")


def _endpoints(routing: ServiceRouting | None) -> int:
    if routing is None:
        return 0
    return len({backend for port in routing.ports for backend in (*port.cluster, *port.local)})


class About(msgspec.Struct, frozen=True):
    """What an agent does not know of itself.

    `client` is None where a folder is served in the API's place. `api_age` gives seconds,
    `wall_clock` and `started` are in seconds since the epoch. `table_usage` counts
    the objects in the kernel's tables, in any thread; it may raise KernelError.
    """

    settings: Settings
    client: Client | None
    health: Health
    api_age: Callable[[], float]
    wall_clock: Callable[[], float]
    started: float
    table_usage: Callable[[], tuple[TableUsage, ...]]


class AgentInspector:
    """Tells of one agent, from any thread; `ask` has a question answered in the agent's own."""

    def __init__(
        self, agent: Agent[Any], memory: ProgrammedState, about: About, ask: Callable[[Query], None]
    ) -> None:
        self._agent = agent
        self._memory = memory
        self._about = about
        self._ask = ask

    def snapshot(self) -> Snapshot:
        """Take a snapshot in the agent's thread. Raises BusyError."""
        taken: Future[Snapshot] = Future()

        def take() -> None:
            try:
                taken.set_result(self._take())
            except Exception as error:  # it is the asker's: the agent goes on
                taken.set_exception(error)

        self._ask(Query(take))
        try:
            return taken.result(_PATIENCE)
        except TimeoutError as error:
            raise BusyError(f"the agent was busy for {_PATIENCE:.0f} s: ask again") from error

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Say how full the kernel's tables are; empty where this mode or kernel does not tell."""
        try:
            return self._about.table_usage()
        except PyproxyError as error:
            log.debug("how full the tables are is not to be had: %s", error)
            return ()

    def look_up(self, name: ObjectName) -> ServiceLookup:
        """Ask the API server for a Service and its pods, in the asker's thread."""
        if self._about.client is None:
            why = f"the folder {self._about.settings.manifests} is served in the API's place"
            return ServiceLookup(service_skipped=why, pods_skipped=why)
        return look_up(self._about.client, name)

    @contextmanager
    def watch(self) -> Iterator[Iterator[Change | None]]:
        """Tell of every change from now on, as it is programmed; None while there is none."""
        with self._memory.watched() as changes:
            yield _taken(changes)

    def _take(self) -> Snapshot:
        agent, memory, about = self._agent, self._memory, self._about
        return Snapshot(
            settings=about.settings,
            started=about.started,
            now=about.wall_clock(),
            health=about.health.report(),
            api_age=about.api_age(),
            services=dict(agent.cluster_state.services),
            slices=dict(agent.cluster_state.slices),
            node=agent.cluster_state.node,
            node_routing=agent.node_routing,
            routings=dict(memory.routings),
            problems=agent.problems(),
            pending=agent.cluster_state.pending_count(),
            syncs=memory.syncs,
            last_sync=memory.last_sync,
            repairs=memory.repairs,
            last_repair=memory.last_repair,
        )


def _taken(changes: queue.Queue[Change]) -> Iterator[Change | None]:
    while True:
        try:
            yield changes.get(timeout=_SIGN_OF_LIFE)
        except queue.Empty:
            yield None
