"""Queries of a running agent: a snapshot in the agent's thread, the rest in the caller's.

A snapshot is a few shallow copies of mappings with frozen values. It takes less than a millisecond
for 10,000 Services, and only the first one after a change copies anything.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import msgspec

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit
from pyproxy.agent.core import Agent
from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import FlowOffloadState, TableUsage
from pyproxy.errors import Problem, PyproxyError
from pyproxy.health.state import Health
from pyproxy.inspect.change_log import ChangeLog
from pyproxy.inspect.snapshot import Change, Repair, Snapshot, Sync
from pyproxy.inspect.turns import PATIENCE, BusyError
from pyproxy.model.config_problems import ConfigProblem
from pyproxy.model.objects import EndpointSlice, ObjectName, Service
from pyproxy.policy.routing import ServiceRouting
from pyproxy.source.api_objects import ServiceLookup
from pyproxy.source.client import Client
from pyproxy.source.lookup import look_up

log = logging.getLogger(__name__)


class Query(msgspec.Struct, frozen=True, eq=False):
    """A function for the agent's thread; it must neither raise nor block."""

    run: Callable[[], None]


class ProgrammedState:
    """A commit listener with the routings that are programmed, which watchers can follow.

    Its methods and attributes are for the agent's thread, except those of `log`.
    """

    def __init__(self) -> None:
        self.log = ChangeLog()
        self.routings: dict[ObjectName, ServiceRouting] = {}
        self.syncs = 0
        self.last_sync: Sync | None = None
        self.repairs = 0
        self.last_repair: Repair | None = None

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:  # noqa: ARG002
        """Apply a commit, and log its changes if there are watchers. Does not block."""
        if self.log.has_watchers:
            self.log.add(list(self._changes(commit)))
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

    def _changes(self, commit: Commit) -> Iterator[Change]:
        for name, routing in commit.routings.items():
            before = self.routings.get(name)
            if routing == before:
                continue
            yield Change(
                str(name),
                "removed" if routing is None else "changed" if before else "added",
                _endpoints(routing),
                commit.ended,
                commit.took,
                commit.latency,
            )


def _endpoints(routing: ServiceRouting | None) -> int:
    if routing is None:
        return 0
    # A set, because local endpoints are among those of the cluster too.
    return len({backend for port in routing.ports for backend in (*port.cluster, *port.local)})


class About(msgspec.Struct, frozen=True):
    """The surroundings of an agent that its inspector reads.

    `client` is None if a folder replaces the API server. `api_age` returns seconds, `wall_clock`
    and `started` are in seconds since the epoch. `table_usage` counts the objects in the kernel's
    tables, and `flow_offload` returns the state of the fast path, None if there is none; both in
    any thread, and they may raise KernelError. `config_problems` returns the mistakes in the
    configuration.
    """

    settings: Settings
    client: Client | None
    health: Health
    api_age: Callable[[], float]
    wall_clock: Callable[[], float]
    started: float
    table_usage: Callable[[], tuple[TableUsage, ...]]
    config_problems: Callable[[], tuple[ConfigProblem, ...]] = tuple
    flow_offload: Callable[[], FlowOffloadState | None] = lambda: None


class _Copies(msgspec.Struct, frozen=True):
    """The parts of a snapshot that are copies, made at this generation of the agent."""

    generation: int
    services: dict[ObjectName, Service]
    slices: dict[ObjectName, EndpointSlice]
    routings: dict[ObjectName, ServiceRouting]
    problems: tuple[Problem, ...]


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
        self._lock = threading.Lock()
        self._wanted: Future[Snapshot] | None = None
        self._copies: _Copies | None = None

    def snapshot(self) -> Snapshot:
        """Return a snapshot, taken in the agent's thread. Blocks for it. Raises BusyError."""
        # All callers that wait share one snapshot, so that the inbox has one query at most, also
        # while the agent's thread is in its first sync and callers give up and try again.
        with self._lock:
            taken = self._wanted
            if is_first := taken is None:
                taken = self._wanted = Future()
        if is_first:
            self._run(Query(partial(self._answer, taken)))
        try:
            return taken.result(PATIENCE)
        except TimeoutError as error:
            raise BusyError(f"the agent was busy for {PATIENCE:.0f} s: try again") from error

    def _answer(self, taken: Future[Snapshot]) -> None:
        with self._lock:
            self._wanted = None
        try:
            taken.set_result(self._take())
        except Exception as error:  # raised in the callers' threads, so that the agent continues
            taken.set_exception(error)

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Count the objects in the kernel's tables; empty if this mode or kernel has no counts."""
        try:
            return self._about.table_usage()
        except PyproxyError as error:
            log.debug("cannot count the objects in the tables: %s", error)
            return ()

    def flow_offload(self) -> FlowOffloadState | None:
        """Return the state of the fast path; None if there is none, or it is unknown."""
        try:
            return self._about.flow_offload()
        except PyproxyError as error:
            log.debug("cannot read the state of flow offload: %s", error)
            return None

    def look_up(self, name: ObjectName) -> ServiceLookup:
        """Read a Service and its pods from the API server. Blocks the caller's thread."""
        if self._about.client is None:
            why = f"the folder {self._about.settings.manifests} replaces the API server"
            return ServiceLookup(service_skipped=why, pods_skipped=why)
        return look_up(self._about.client, name)

    def watch(self) -> AbstractContextManager[Iterator[Sequence[Change]]]:
        """Yield an iterator of changes as they are programmed, empty after an idle second."""
        return self._programmed.log.watched()

    def _copied(self) -> _Copies:
        """Return the copies of before if the agent has done nothing since then."""
        agent, state = self._agent, self._agent.cluster_state
        if self._copies is None or self._copies.generation != agent.generation:
            self._copies = _Copies(
                agent.generation,
                dict(state.services),
                dict(state.slices),
                dict(self._programmed.routings),
                agent.problems(),
            )
        return self._copies

    def _take(self) -> Snapshot:
        agent, programmed, about = self._agent, self._programmed, self._about
        copies = self._copied()
        return Snapshot(
            settings=about.settings,
            started=about.started,
            now=about.wall_clock(),
            health=about.health.report(),
            api_age=about.api_age(),
            services=copies.services,
            slices=copies.slices,
            node=agent.cluster_state.node,
            node_routing=agent.node_routing,
            routings=copies.routings,
            problems=copies.problems,
            pending=agent.pending_count(),
            syncs=programmed.syncs,
            last_sync=programmed.last_sync,
            sync_error=agent.sync_error,
            repairs=programmed.repairs,
            last_repair=programmed.last_repair,
            config_problems=about.config_problems(),
            slow_changes=agent.timeline.slowest(),
        )
