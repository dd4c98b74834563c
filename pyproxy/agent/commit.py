"""A commit as its listeners see it, and what an agent has besides its dataplane."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.errors import Problem
from pyproxy.health.state import Health
from pyproxy.inspect.snapshot import Repair
from pyproxy.metrics import Metrics
from pyproxy.model.address import Address
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting


class Commit(msgspec.Struct, frozen=True):
    """One commit, for listeners.

    `routings` are the Services that the kernel has as a whole now, None for those that are gone;
    with `full` they are all. `written` is what it took, with the parts of divided Services by
    themselves, and all of it with `full`. The kernel holds the previous state of the `rejected`
    Services. `ended` is in seconds since the epoch, `took` in
    seconds. `latency` is in seconds from reading the oldest change to its commit, None without a
    change. `repair` is set if the commit undid another program's change.
    """

    routings: Mapping[ObjectName, ServiceRouting | None]
    written: Mapping[ObjectName, ServiceRouting | None]
    full: bool
    node_port_addresses: tuple[Address, ...]
    rejected: frozenset[ObjectName] = frozenset()
    ended: float = 0.0
    took: float = 0.0
    latency: float | None = None
    repair: Repair | None = None


class CommitListener(Protocol):
    """Code that runs after a commit, such as conntrack and health checks."""

    def committed(self, commit: Commit, cluster_state: ClusterState) -> None:
        """Take note of a commit. Must not block, because it runs in the agent's thread.

        `cluster_state` is the one that was committed, and changes after the call.
        """
        ...


class Observers(msgspec.Struct, frozen=True):
    """The agent's outputs besides the dataplane, and its clocks, which return seconds.

    `clock` is monotonic, `wall_clock` counts from the epoch. `report` records a problem as an
    Event.
    """

    metrics: Metrics
    health: Health
    listeners: Sequence[CommitListener]
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    report: Callable[[Problem], None]
