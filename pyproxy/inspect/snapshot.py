"""The state of an agent at one moment, as a value that any thread may read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import FlowOffloadState, NodeRouting, TableUsage
from pyproxy.errors import Problem
from pyproxy.health.state import HealthReport
from pyproxy.inspect.slow_changes import SlowChanges
from pyproxy.model.config_problems import ConfigProblem
from pyproxy.model.objects import EndpointSlice, Node, ObjectName, Service
from pyproxy.policy.routing import ServiceRouting
from pyproxy.source.api_objects import ServiceLookup


class Sync(msgspec.Struct, frozen=True):
    """One commit.

    `ended` is in seconds since the epoch, `duration` in seconds. `services` is the number of
    planned Services. `full` is true if the plan started from a read-back of the kernel.
    """

    ended: float
    duration: float
    services: int
    full: bool


class Repair(msgspec.Struct, frozen=True):
    """One repair of drift.

    `by` is the program that changed our objects, empty if unknown. `counts` has the number of
    repaired objects by kind.
    """

    ended: float
    by: str
    counts: Mapping[str, int]


class Snapshot(msgspec.Struct, frozen=True):
    """The agent's desired state, the programmed routings, and its health.

    The mappings are copies with frozen values. `started` and `now` are in seconds since the epoch.
    `api_age` is in seconds since the last event or bookmark of the quietest watch.
    `pending` is the number of Services that wait for the next sync. `sync_error` is that of the
    last sync, empty after a successful one.
    """

    settings: Settings
    started: float
    now: float
    health: HealthReport
    api_age: float
    services: Mapping[ObjectName, Service]
    slices: Mapping[ObjectName, EndpointSlice]
    node: Node | None
    node_routing: NodeRouting
    routings: Mapping[ObjectName, ServiceRouting]
    problems: tuple[Problem, ...]
    pending: int
    syncs: int
    last_sync: Sync | None = None
    sync_error: str = ""
    repairs: int = 0
    last_repair: Repair | None = None
    config_problems: tuple[ConfigProblem, ...] = ()
    slow_changes: SlowChanges = SlowChanges(0.0, ())

    def slices_of(self, service: ObjectName) -> tuple[EndpointSlice, ...]:
        """Return the slices of a Service, sorted by name."""
        found = [each for each in self.slices.values() if each.service == service]
        return tuple(sorted(found, key=lambda each: each.name))


class Change(msgspec.Struct, frozen=True, rename="camel"):
    """One Service that a commit has added, changed or removed.

    `type` is "added", "changed" or "removed". `endpoints` is the number of distinct endpoints.
    `ended` is in seconds since the epoch; `sync_duration` and `latency` are in seconds. `latency`
    runs from the receipt of the oldest event of the commit to the end of the commit; None if
    the commit had no event.
    """

    service: str
    type: str
    endpoints: int
    ended: float
    sync_duration: float
    latency: float | None = None


class AgentView(Protocol):
    """Read access to an agent: the running one, or one that reads API and kernel once.

    All methods may be called from any thread at any time; none changes anything.
    """

    def snapshot(self) -> Snapshot:
        """Return a snapshot.

        Blocks until the agent's thread has taken it, for 10 s at most. Raises BusyError.
        """
        ...

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Return the number of objects in the kernel's tables; empty if it is unknown.

        May read the kernel in the calling thread.
        """
        ...

    def flow_offload(self) -> FlowOffloadState | None:
        """Return the state of the fast path; None if there is none, or it is unknown.

        May read the kernel in the calling thread.
        """
        ...

    def look_up(self, name: ObjectName) -> ServiceLookup:
        """Ask the API server for a Service and its pods; the result includes failures.

        Blocks the calling thread until the API server responds or a timeout of a few seconds ends.
        """
        ...

    def watch(self) -> AbstractContextManager[Iterator[Sequence[Change]]]:
        """Return the changes from now on, as they are committed; none of them after an idle second.

        The iterator blocks. A reader that is too slow loses changes and delays no sync.
        """
        ...
