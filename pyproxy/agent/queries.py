"""Queries of a running agent: a snapshot in the agent's thread, the rest in the caller's.

A snapshot is a few shallow copies of mappings with frozen values. It takes less than a millisecond
for 10,000 Services, so that queries do not delay syncs.
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
from pyproxy.agent.commit import Commit
from pyproxy.agent.core import Agent
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
"""Seconds that a query waits for the agent's thread; a first sync takes a few."""

_QUEUE = 10_000
"""Changes that a watcher may lag behind before it loses some."""

_IDLE_SECONDS = 1.0
"""Seconds without a change after which a watcher gets None."""


class BusyError(PyproxyError):
    """The agent's thread was too busy for a query."""


class Query(msgspec.Struct, frozen=True, eq=False):
    """A function for the agent's thread; it must neither raise nor block."""

    run: Callable[[], None]


class ProgrammedState:
    """A commit listener with the routings that are programmed, which watchers can follow.

    Its methods and attributes are for the agent's thread, except `watched`.
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
        """Apply a commit, and queue its changes for the watchers. Does not block."""
        if self._watchers:
            self._notify(commit)
        if commit.full:
            # The kernel still holds the previous state of Services that it rejected.
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
        """Provide a new queue that gets each change; a full queue loses changes. Any thread."""
        changes: queue.Queue[Change] = queue.Queue(_QUEUE)
        # The list is replaced, never changed, so that the agent's thread iterates without the lock.
        with self._lock:
            self._watchers = [*self._watchers, changes]
        try:
            yield changes
        finally:
            with self._lock:
                self._watchers = [each for each in self._watchers if each is not changes]

    def _notify(self, commit: Commit) -> None:
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
                    log.debug("a watcher is too slow and loses a change")


def _endpoints(routing: ServiceRouting | None) -> int:
    if routing is None:
        return 0
    # A set, because local endpoints are among those of the cluster too.
    return len({backend for port in routing.ports for backend in (*port.cluster, *port.local)})


class About(msgspec.Struct, frozen=True):
    """The surroundings of an agent that its inspector reads.

    `client` is None if a folder replaces the API server. `api_age` returns seconds, `wall_clock`
    and `started` are in seconds since the epoch. `table_usage` counts the objects in the kernel's
    tables, in any thread; it may raise KernelError.
    """

    settings: Settings
    client: Client | None
    health: Health
    api_age: Callable[[], float]
    wall_clock: Callable[[], float]
    started: float
    table_usage: Callable[[], tuple[TableUsage, ...]]


class AgentInspector:
    """Inspects one agent from any thread; `run` hands a query to the agent's thread."""

    def __init__(
        self,
        agent: Agent[Any],
        programmed: ProgrammedState,
        about: About,
        run: Callable[[Query], None],
    ) -> None:
        self._agent = agent
        self._programmed = programmed
        self._about = about
        self._run = run

    def snapshot(self) -> Snapshot:
        """Return a snapshot, taken in the agent's thread. Blocks for it. Raises BusyError."""
        taken: Future[Snapshot] = Future()

        def take() -> None:
            try:
                taken.set_result(self._take())
            except Exception as error:  # raised in the caller's thread, so that the agent continues
                taken.set_exception(error)

        self._run(Query(take))
        try:
            return taken.result(_PATIENCE)
        except TimeoutError as error:
            # The query stays in the inbox and runs later, without a reader of its result.
            raise BusyError(f"the agent was busy for {_PATIENCE:.0f} s: try again") from error

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Count the objects in the kernel's tables; empty if this mode or kernel has no counts."""
        try:
            return self._about.table_usage()
        except PyproxyError as error:
            log.debug("cannot count the objects in the tables: %s", error)
            return ()

    def look_up(self, name: ObjectName) -> ServiceLookup:
        """Read a Service and its pods from the API server. Blocks the caller's thread."""
        if self._about.client is None:
            why = f"the folder {self._about.settings.manifests} replaces the API server"
            return ServiceLookup(service_skipped=why, pods_skipped=why)
        return look_up(self._about.client, name)

    @contextmanager
    def watch(self) -> Iterator[Iterator[Change | None]]:
        """Yield an iterator of changes as they are programmed, with None after an idle second."""
        with self._programmed.watched() as changes:
            yield _taken(changes)

    def _take(self) -> Snapshot:
        agent, programmed, about = self._agent, self._programmed, self._about
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
            routings=dict(programmed.routings),
            problems=agent.problems(),
            pending=agent.pending_count(),
            syncs=programmed.syncs,
            last_sync=programmed.last_sync,
            repairs=programmed.repairs,
            last_repair=programmed.last_repair,
        )


def _taken(changes: queue.Queue[Change]) -> Iterator[Change | None]:
    while True:
        try:
            yield changes.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            yield None
