"""An agent that reads the API once, routes all Services, and writes nothing."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
from prometheus_client.metrics_core import Metric

from pyproxy.agent.backoff import SyncBackoff
from pyproxy.agent.commit import CommitListener, Observers
from pyproxy.agent.config_checks import ConfigChecks
from pyproxy.agent.config_file import file_problems
from pyproxy.agent.core import Agent
from pyproxy.agent.node import NodeRules
from pyproxy.agent.node_addresses import LocalAddresses
from pyproxy.agent.queries import About, AgentInspector, ProgrammedState, Query
from pyproxy.agent.sources import Source, client_of, servers_of, source_of
from pyproxy.config.settings import Settings
from pyproxy.dataplane import modes
from pyproxy.dataplane.interface import (
    Changes,
    Drift,
    Failure,
    NodeRouting,
    StateDiff,
    StepLimits,
    TableUsage,
)
from pyproxy.errors import KernelError, Problem, SourceError, UsageError
from pyproxy.health.state import Health
from pyproxy.metrics import Metrics
from pyproxy.model.address import FAMILIES, Family
from pyproxy.model.events import Event
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting
from pyproxy.source.manifests import read_file

_PATIENCE = 15.0
"""Seconds for reading all lists."""


class _NoPlan(msgspec.Struct, frozen=True):
    """A plan with nothing to write."""

    def __bool__(self) -> bool:
        return False

    def lines(self) -> Iterator[str]:
        """Yield no line."""
        return iter(())

    def counts(self) -> Mapping[str, int]:
        """Count nothing."""
        return {}

    def netlink(self) -> Iterator[str]:
        """Yield no message."""
        return iter(())


class NullDataplane:
    """A dataplane without a kernel: it writes nothing and finds no difference."""

    step_limits = StepLimits(sys.maxsize, sys.maxsize)
    families = FAMILIES
    messages_sent = 0
    bytes_sent = 0
    kernel_seconds = 0.0

    def __init__(self, name: str) -> None:
        self.name = name

    def collect(self) -> Iterator[Metric]:
        """Yield no metric."""
        return iter(())

    def prepare(self) -> None:
        """Do nothing."""

    def prepare_to_read(self) -> None:
        """Do nothing."""

    def read_ahead(self) -> None:
        """Do nothing."""

    def write_early(self, node: NodeRouting) -> None:
        """Return None: nothing is written."""

    def compare(self, wanted: ServiceRouting, node: NodeRouting) -> StateDiff:  # noqa: ARG002
        """Find no difference."""
        return StateDiff()

    def check_base_rules(self, node: NodeRouting) -> tuple[str, ...]:  # noqa: ARG002
        """Find no difference."""
        return ()

    def refused_clients(self) -> Mapping[ObjectName, Mapping[bytes, int]]:
        """Return nothing."""
        return {}

    def wait_for_devices(self) -> bool:
        """Return False."""
        return False

    def devices_changed(self) -> None:
        """Do nothing."""

    def flow_offload(self) -> None:
        """Return None."""

    def table_usage(self) -> tuple[TableUsage, ...]:
        """Count nothing."""
        return ()

    def plan(self, changes: Changes) -> _NoPlan:  # noqa: ARG002
        """Plan nothing."""
        return _NoPlan()

    def plan_full(self, services: Iterable[ServiceRouting], node: NodeRouting) -> _NoPlan:  # noqa: ARG002
        """Plan nothing."""
        return _NoPlan()

    def plan_repair(self, sets: frozenset[str] | None) -> _NoPlan | None:  # noqa: ARG002
        """Return None: nothing drifts."""
        return None

    def start_audit(self) -> bool:
        """Return False: only a read-back compares."""
        return False

    def commit(self, plan: _NoPlan) -> tuple[Failure, ...]:  # noqa: ARG002
        """Write nothing."""
        return ()

    def wait_for_drift(self) -> Drift | None:
        """Return None at once."""
        return None

    def tick(self) -> Drift | None:
        """Find no drift."""
        return None

    def cleanup(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def read_once(settings: Settings, files: Iterable[Path] = ()) -> AgentInspector:
    """Return an inspector of an agent that has read everything once, and the objects of `files`.

    Blocks until all lists are read. Raises SourceError if the API server does not respond in time,
    and UsageError.
    """
    programmed, health = ProgrammedState(), Health(settings.pace.sync_period)
    client = client_of(settings, None)
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    source = source_of(settings, client, inbox.put)
    checks = ConfigChecks(settings, source, client, partial(file_problems, settings.file_warnings))
    listeners: list[CommitListener] = [programmed, checks]
    observers = Observers(Metrics(), health, listeners, time.monotonic, time.time, _ignore)
    local = LocalAddresses()
    # Without a kernel dataplane, a command writes nothing and needs no capability.
    agent = Agent(
        NullDataplane(settings.mode.value),
        NodeRules(
            settings,
            local.read,
            local.broadcasts,
            partial(servers_of, client),
            local.large_networks,
            _programmable(settings),
        ),
        SyncBackoff(0.0),
        observers,
    )
    where = client.host if client else settings.manifests
    with closing(local):
        _read(source, inbox, agent, where)
        for event in (event for path in files for event in read_file(path)):
            agent.handle_event(event)
        agent.sync()
    about = About(
        settings,
        client,
        health,
        lambda: 0.0,
        time.time,
        time.time(),
        partial(_table_usage, settings),
        lambda: checks.find(agent.cluster_state, agent.node_routing),
    )
    return AgentInspector(agent, programmed, about, _run)


def _programmable(settings: Settings) -> frozenset[Family]:
    """Return the families that the mode can serve on this machine, all if that is unknown."""
    try:
        with closing(modes.of(settings.mode).make(settings)) as dataplane:
            dataplane.prepare_to_read()
            return dataplane.families
    except (KernelError, UsageError):
        # Without a right, for example: a command that reads the kernel reports it.
        return FAMILIES


def _read(
    source: Source, inbox: queue.SimpleQueue[Event], agent: Agent[_NoPlan], where: str
) -> None:
    source.start()
    deadline = time.monotonic() + _PATIENCE
    try:
        while not agent.cluster_state.has_synced:
            agent.handle_event(inbox.get(timeout=max(deadline - time.monotonic(), 0.0)))
    except queue.Empty as error:
        reasons = "".join(f": {problem}" for problem in source.problems()[:1])
        raise SourceError(f"{where} did not respond within {_PATIENCE:.0f} s{reasons}") from error
    finally:
        source.stop()


def _table_usage(settings: Settings) -> tuple[TableUsage, ...]:
    with closing(modes.of(settings.mode).make(settings)) as dataplane:
        return dataplane.table_usage()


def _ignore(_: Problem) -> None:
    """Do nothing, because the snapshot has all problems."""


def _run(query: Query) -> None:
    # No loop runs, so the caller's thread is the agent's thread.
    query.run()
