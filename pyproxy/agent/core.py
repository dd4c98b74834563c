"""The agent's decisions: events in, one transaction out, then the commit listeners.

It runs in one thread, takes its clocks as arguments and never sleeps, so that a test can simulate a
year within seconds. `loop` passes it events and calls `sync` when one is due.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Generic, Protocol

import msgspec

from pyproxy.agent.backoff import UNKNOWN, ReadbackSchedule, SyncBackoff
from pyproxy.agent.cluster_state import ClusterState, PendingChanges
from pyproxy.agent.node import NodeRules
from pyproxy.agent.problems import ProblemSource, ProblemTracker
from pyproxy.agent.service_router import Routings, ServiceRouter
from pyproxy.dataplane.interface import Changes, Dataplane, Drift, Failure, NodeRouting, P
from pyproxy.errors import KernelError, PermissionKernelError, Problem, StaleStateError
from pyproxy.health.state import Health
from pyproxy.inspect.snapshot import Repair
from pyproxy.metrics import Metrics
from pyproxy.model.address import Address, Backend
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service
from pyproxy.policy.routing import ServiceRouting

log = logging.getLogger(__name__)

_WARN_AFTER_FAILURES = 3
"""Failed syncs in a row from which a stale state is logged as a warning."""

_LOGGED_LINES = 3
"""Lines of a repair that are logged."""


class Commit(msgspec.Struct, frozen=True):
    """One commit, for listeners.

    `routings` are those that the kernel took; with `full` they are all. The kernel holds the
    previous state of the `rejected` Services. `ended` is in seconds since the epoch, `took` in
    seconds. `latency` is in seconds from reading the oldest change to its commit, None without a
    change. `repair` is set if the commit undid another program's change.
    """

    routings: Mapping[ObjectName, ServiceRouting | None]
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


class Agent(Generic[P]):
    """Keeps one dataplane in sync with the events that it handles."""

    def __init__(
        self,
        dataplane: Dataplane[P],
        node_rules: NodeRules,
        backoff: SyncBackoff,
        observers: Observers,
    ) -> None:
        self.cluster_state = ClusterState()
        self._dataplane = dataplane
        self._node_rules = node_rules
        self._backoff = backoff
        self._observers = observers
        self._problems = ProblemTracker(observers.report)
        self._router = ServiceRouter(
            self.cluster_state, self._problems, node_rules.hostname, node_rules.bounds
        )
        self._readback = ReadbackSchedule(observers.clock())
        self._node = NodeRouting()
        self._rejected: set[ObjectName] = set()

    @property
    def node_routing(self) -> NodeRouting:
        """The node's part in the last sync."""
        return self._node

    @property
    def api_servers(self) -> frozenset[Backend]:
        """The API servers whose addresses no external IP gets."""
        return self._node.reserved.api_servers

    def problems(self) -> tuple[Problem, ...]:
        """Return the present problems of all objects, in the order in which they were found."""
        return self._problems.problems()

    def handle_event(self, event: Event) -> None:
        """Take in one event; a later `sync` writes it."""
        # /healthz counts the delay from the oldest change that is not written.
        was_idle = not self.cluster_state.has_pending
        changed = self.cluster_state.handle_event(event)
        match event:
            case Upsert(obj=Node() as node):
                self._observers.health.set_node_eligible(node.eligible)
                self._decoded(Kind.NODE, node.name, node.problems)
            case Upsert(obj=Service() | EndpointSlice() as obj):
                kind = Kind.SERVICE if isinstance(obj, Service) else Kind.ENDPOINT_SLICE
                self._decoded(kind, obj.name, obj.problems)
            case Delete(kind=kind, name=name):
                self._decoded(kind, name, ())
                if kind is Kind.NODE and changed:
                    self._observers.health.set_node_eligible(eligible=False)
            case Synced(kind=kind, names=names, invalid=invalid):
                # Problems name objects as text, because an invalid object may have no valid name.
                self._problems.remove_absent(
                    ProblemSource.DECODING,
                    kind,
                    lambda name: name in invalid or _object_name(name) in names,
                )
                node_now = self.cluster_state.node
                if kind is Kind.NODE and node_now is not None:
                    self._observers.health.set_node_eligible(node_now.eligible)
            case InvalidObject(problem=problem):
                subject = (problem.kind, problem.name)
                self._problems.found(ProblemSource.DECODING, subject, (problem,))
        # An invalid object alone makes no sync due, so the metric is set here too.
        self._count_problems()
        if changed is not None:
            self._observers.metrics.change_queued(changed, self._observers.wall_clock())
        if was_idle and self.cluster_state.has_pending:
            self._observers.health.queued()

    def due(self) -> float | None:
        """Return the monotonic time for the next sync, None if there is nothing to do."""
        # A sync from incomplete lists would delete Services that still exist from the kernel.
        if not self.cluster_state.has_synced:
            return None
        if self.cluster_state.has_pending:
            return self._backoff.due()
        readback = self._readback.due
        return None if readback is None else max(readback, self._backoff.due())

    def addresses_changed(self) -> None:
        """Have Services routed again if new addresses of node or API server matter to them."""
        if not self.cluster_state.has_synced:
            return
        try:
            node = self._node_rules.routing(self.cluster_state.node)
        except KernelError as error:
            # The sync reads the addresses again, and is retried if that fails.
            log.debug("cannot compare the node's addresses: %s", error)
            self._mark_all_pending()
            return
        if msgspec.structs.replace(node, reserved=self._node.reserved) != self._node:
            self._mark_all_pending()
            return
        changed = node.reserved.changed_addresses(self._node.reserved)
        self._node = node
        if changed and (users := set(self.cluster_state.users_of(changed))):
            self._queued()
            self.cluster_state.route_again(users)

    def _mark_all_pending(self) -> None:
        self._queued()
        self.cluster_state.mark_all_pending()

    def _queued(self) -> None:
        if not self.cluster_state.has_pending:
            self._observers.health.queued()

    def drifted(self, drift: Drift) -> None:
        """Have the kernel read back after another program changed our objects."""
        self._readback.drifted(self._observers.clock(), drift.by or UNKNOWN, drift.sets)

    def audit(self) -> None:
        """Have the kernel read back now and then, for changes without a notification."""
        self._readback.audit(self._observers.clock())

    def tick(self) -> None:
        """Let the dataplane do what is due by time. Raises PermissionKernelError."""
        try:
            drift = self._dataplane.tick()
        except PermissionKernelError:
            # A subclass of KernelError, but dropped capabilities do not come back: the agent exits.
            raise
        except KernelError as error:
            log.warning("periodic check of the kernel failed, reading it back: %s", error)
            drift = Drift("")
        if drift is not None:
            self.drifted(drift)

    def sync(self) -> None:
        """Bring the kernel to the desired state.

        Blocks for one transaction. Raises PermissionKernelError; other failures are retried later.
        """
        began = self._observers.clock()
        if self._readback.is_due(began) and self._repair(began):
            return
        pending = self.cluster_state.take_pending()
        self._observers.metrics.changes_taken()
        # Only a read-back shows the kernel state of a Service that the kernel rejected.
        full = self._readback.is_due(began) or not self._rejected.isdisjoint(pending.services)
        try:
            plan, routings = self._plan_full(pending) if full else self._plan_partial(pending)
            failures = self._dataplane.commit(plan)
        except PermissionKernelError:
            raise
        except KernelError as error:
            self.cluster_state.put_back(pending)
            self._failed(error)
            return
        repair = self._read_back(plan) if full else None
        taken = self._succeeded(routings, failures)
        self._publish(pending, taken, began, full=full, repair=repair)

    def _repair(self, began: float) -> bool:
        """Undo other programs' writes from the last commit alone; return False if that is no use.

        Changes of the cluster stay pending, and the next sync writes them.
        """
        # A commit of all Services forgets the state that the kernel keeps of a rejected one.
        if self._readback.needs_routing or self._rejected:
            return False
        try:
            plan = self._dataplane.plan_repair(self._readback.sets)
            if plan is None:
                return False
            failures = self._dataplane.commit(plan)
        except PermissionKernelError:
            raise
        except KernelError as error:
            self._failed(error)
            return True
        repair = self._read_back(plan)
        self._succeeded({}, failures)
        self._publish(PendingChanges(set()), {}, began, full=False, repair=repair)
        return True

    def _plan_full(self, pending: PendingChanges) -> tuple[P, Routings]:
        self._node = self._node_rules.routing(self.cluster_state.node)
        routings = self._router.route(self._all_names(pending), self._node)
        present = [routing for routing in routings.values() if routing is not None]
        return self._dataplane.plan_full(present, self._node), routings

    def _plan_partial(self, pending: PendingChanges) -> tuple[P, Routings]:
        names: Iterable[ObjectName] = pending.services
        changed_node = None
        if pending.everything:
            names = self._all_names(pending)
            node = self._node_rules.routing(self.cluster_state.node)
            # None leaves the base rules alone, although all Services are routed again.
            changed_node = node if node != self._node else None
            self._node = node
        routings = self._router.route(names, self._node)
        return self._dataplane.plan(Changes(routings, changed_node)), routings

    def _all_names(self, pending: PendingChanges) -> Iterable[ObjectName]:
        # Removed Services must give up their frontends. The order is that of reading and not of
        # a hash, because objects that were read together lie together in memory.
        services = self.cluster_state.services
        return [*services, *pending.services.difference(services)]

    def _read_back(self, plan: P) -> Repair | None:
        """Record a read-back, and the repair if it found another program's changes."""
        now = self._observers.clock()
        drift = self._readback.done(now)
        # Without a drift, such as at the first sync, a difference is no repair.
        if not drift or not plan:
            return None
        counts = plan.counts()
        self._observers.metrics.drift_repaired(counts)
        log.warning(
            "repaired changes by %s: %s: %s",
            drift,
            ", ".join(f"{count} {kind}" for kind, count in counts.items()),
            "; ".join(islice(plan.lines(), _LOGGED_LINES)),
        )
        if self._readback.repaired(now, drift):
            self._report_conflict(drift)
        return Repair(self._observers.wall_clock(), drift, dict(counts))

    def _report_conflict(self, drift: str) -> None:
        problem = Problem(
            Kind.NODE.value,
            self._node_rules.hostname,
            self._dataplane.name,
            f"{drift} keeps undoing what pyproxy writes, so that repairs are delayed: stop that "
            "program, or configure it to leave pyproxy's objects alone",
        )
        log.warning("%s", problem)
        self._observers.report(problem)

    def _succeeded(self, routings: Routings, failures: Sequence[Failure]) -> Routings:
        """Record the Services that the kernel rejected; return the routings that it took."""
        self._backoff.succeeded(self._observers.clock())
        rejected = {failure.name: failure.error for failure in failures}
        for name in self._rejected & routings.keys() - rejected.keys():
            self._router.set_rejected(name, None)
        for name, error in rejected.items():
            self._router.set_rejected(name, error)
        self._rejected = (self._rejected - routings.keys()) | rejected.keys()
        if not rejected:
            return routings
        return {name: routing for name, routing in routings.items() if name not in rejected}

    def _failed(self, error: KernelError) -> None:
        now = self._observers.clock()
        self._backoff.failed(now)
        self._observers.metrics.sync_failed()
        self._observers.health.queued()
        # Part of a large plan may be written, so the next plan starts from a read-back.
        self._readback.request(now)
        # ENOENT or EEXIST: another program wrote between our plan and its commit.
        is_expected = (
            isinstance(error, StaleStateError) and self._backoff.failures < _WARN_AFTER_FAILURES
        )
        level = logging.INFO if is_expected else logging.WARNING
        log.log(level, "sync failed, reading the kernel back to try again: %s", error)

    def _publish(
        self,
        pending: PendingChanges,
        routings: Routings,
        began: float,
        *,
        full: bool,
        repair: Repair | None,
    ) -> None:
        now = self._observers.clock()
        commit = Commit(
            routings,
            full,
            self._node.node_port_addresses,
            rejected=frozenset(self._rejected),
            ended=self._observers.wall_clock(),
            took=now - began,
            latency=now - min(pending.read_at) if pending.read_at else None,
            repair=repair,
        )
        # Listeners run after the commit and must not block, so they delay no packet and no sync.
        for listener in self._observers.listeners:
            listener.committed(commit, self.cluster_state)
        self._observers.health.updated()
        self._measure(pending, now - began, now, full=full)

    def _measure(self, pending: PendingChanges, took: float, now: float, *, full: bool) -> None:
        metrics, wall = self._observers.metrics, self._observers.wall_clock()
        # A repair, which has no changes, reads the kernel back as a full sync does.
        metrics.sync_finished(took, wall, full=full or not pending)
        if not full:
            metrics.programmed([now - read_at for read_at in pending.read_at])
        for each in pending.triggered:
            metrics.network_programmed(each.family, [wall - each.triggered])
        self._count_problems()

    def _count_problems(self) -> None:
        if not self._problems.changed:
            return
        for kind, count in self._problems.counts().items():
            self._observers.metrics.invalid(kind, count)

    def _decoded(self, kind: Kind, name: ObjectName | str, problems: tuple[Problem, ...]) -> None:
        # Most objects are valid, and a list has tens of thousands.
        if problems or self._problems:
            subject = (kind.value, str(name))
            self._problems.found(ProblemSource.DECODING, subject, problems)


def _object_name(text: str) -> ObjectName:
    namespace, _, name = text.rpartition("/")
    return ObjectName(namespace, name)
