"""The agent at one moment, as a value that any thread may take its time over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeRouting, TableUsage
from pyproxy.errors import Problem
from pyproxy.health.state import HealthReport
from pyproxy.model.objects import EndpointSlice, Node, ObjectName, Service
from pyproxy.policy.routing import ServiceRouting
from pyproxy.source.api_objects import ServiceLookup


class Sync(msgspec.Struct, frozen=True):
    """One commit: when it ended (seconds since the epoch), how long it took, and for what.

    `whole` says that the kernel was read back for it.
    """

    ended: float
    took: float
    services: int
    whole: bool


class Repair(msgspec.Struct, frozen=True):
    """What somebody else's write made necessary; `counts` are objects by kind."""

    ended: float
    by: str
    counts: Mapping[str, int]


class Snapshot(msgspec.Struct, frozen=True):
    """What the agent knows, what it has programmed, and how it is.

    The mappings are copies of their own with frozen values. `answers` are those programmed.
    `started` and `now` are in seconds since the epoch; `api_age` is for how many seconds nothing
    was heard of the API server, 0 for a folder of manifests. `pending` are Services that wait for
    the next sync.
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
    repairs: int = 0
    last_repair: Repair | None = None

    def slices_of(self, service: ObjectName) -> tuple[EndpointSlice, ...]:
        """Give the slices that name a Service, by name."""
        found = [each for each in self.slices.values() if each.service == service]
        return tuple(sorted(found, key=lambda each: each.name))


class Change(msgspec.Struct, frozen=True):
    """One Service as a commit has just programmed it.

    `latency` is in seconds from the reading of the oldest change in that commit, None where nothing
    was read for it. `ended` is in seconds since the epoch.
    """

    service: str
    what: str
    endpoints: int
    ended: float
    took: float
    latency: float | None = None


class AgentView(Protocol):
    """Whoever can tell of an agent: the one that runs here, or one made up to answer a question."""

    def snapshot(self) -> Snapshot:
        """Take a snapshot in the agent's thread. Raises BusyError."""
        ...

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Say how full the kernel's tables are; empty where this mode or kernel does not tell."""
        ...

    def look_up(self, name: ObjectName) -> ServiceLookup:
        """Ask the API server for a Service and its pods; what goes wrong is part of the answer."""
        ...

    def follow(self) -> AbstractContextManager[Iterator[Change | None]]:
        """Tell of every change from now on, as it is programmed; None while there is none."""
        ...
