"""The agent's decisions: events in, transactions out step by step, then the commit listeners.

It runs in one thread, takes its clocks as arguments and never sleeps, so that a test can simulate a
year within seconds. `loop` passes it events and calls `sync` when one is due.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Generic

from pyproxy.agent.backoff import UNKNOWN, ReadbackSchedule, SyncBackoff
from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.commit import Commit, Observers
from pyproxy.agent.current_node import CurrentNode
from pyproxy.agent.event_problems import EventProblems
from pyproxy.agent.node import NodeRules
from pyproxy.agent.pending import Arrival, Change
from pyproxy.agent.problems import ProblemTracker
from pyproxy.agent.service_router import Routings, ServiceRouter
from pyproxy.agent.steps import Finished, Step, Steps, without
from pyproxy.agent.timeline import Activity, StepTimes, Timeline
from pyproxy.dataplane.interface import Changes, Dataplane, Drift, Failure, NodeRouting, P
from pyproxy.errors import KernelError, PermissionKernelError, Problem, StaleStateError
from pyproxy.inspect.snapshot import Repair
from pyproxy.model.address import Backend
from pyproxy.model.events import Event
from pyproxy.model.objects import Kind, ObjectName
from pyproxy.policy.parts import service_of

log = logging.getLogger(__name__)

# A global name, because an attribute lookup on an enum is slow.
_NODE = Kind.NODE

_WARN_AFTER_FAILURES = 3
"""Failed syncs in a row from which a stale state is logged as a warning."""

_LOGGED_LINES = 3
"""Lines of a repair that are logged."""


class Agent(Generic[P]):
    """Keeps one dataplane in sync with the events that it handles."""

    def __init__(
        self,
        dataplane: Dataplane[P],
        node_rules: NodeRules,
        backoff: SyncBackoff,
        observers: Observers,
    ) -> None:
        limits = dataplane.step_limits
        self.cluster_state = ClusterState(limits.large, self._note_late)
        self._dataplane = dataplane
        self._node_rules = node_rules
        self._backoff = backoff
        self._observers = observers
        self._problems = ProblemTracker(observers.report)
        self._event_problems = EventProblems(self._problems, self.cluster_state, observers)
        self._router = ServiceRouter(
            self.cluster_state,
            self._problems,
            node_rules.hostname,
            node_rules.bounds,
            divides_node_ports=node_rules.divides_node_ports,
            offload=node_rules.offload,
        )
        self._steps = Steps(self.cluster_state, self._router, limits)
        self._readback = ReadbackSchedule(observers.clock())
        self._node = CurrentNode(node_rules, self._router, self.cluster_state)
        self._rejected: frozenset[ObjectName] = frozenset()
        self._has_committed = False
        self._started = observers.wall_clock()
        self.timeline = Timeline(observers.clock, observers.wall_clock, observers.metrics.changes)
        """Where the time of changes goes; the loop adds what else occupies this thread."""
        self.generation = 0
        """The number of events and syncs so far: without a new one, no state has changed."""
        self.sync_error = ""
        """The error of the last sync, empty once a sync has succeeded."""

    @property
    def node_routing(self) -> NodeRouting:
        """The node's part in the last sync."""
        return self._node.routing

    @property
    def api_servers(self) -> frozenset[Backend]:
        """The API servers whose addresses no external IP gets."""
        return self._node.routing.reserved.api_servers

    def pending_count(self) -> int:
        """Count the Services whose changes are not yet written."""
        return len(self._steps)

    def problems(self) -> tuple[Problem, ...]:
        """Return the present problems of all objects, in the order in which they were found."""
        return self._problems.problems()

    def handle_event(self, event: Event) -> None:
        """Take in one event; a later `sync` writes it."""
        self.generation += 1
        # /healthz counts the delay from the oldest change that is not written.
        was_idle = not self._has_committed or not self._steps
        changed = self.cluster_state.handle_event(event, self._observers.clock())
        self._event_problems.note(event, changed)
        if changed is _NODE:
            self._node.forget()
        # An invalid object alone makes no sync due, so the metric is set here too.
        if self._problems.changed:
            self._event_problems.count()
        if changed is not None:
            self._observers.metrics.changes.queued(changed, self._observers.wall_clock())
        if was_idle and (not self._has_committed or self._steps):
            self._observers.health.queued()

    def _note_late(self, event: Event) -> None:
        # Before a sync ends, because it may fail, and from queries too.
        self._event_problems.note(event)
        self._event_problems.count()

    def due(self) -> float | None:
        """Return the monotonic time for the next sync, None if there is nothing to do."""
        # A sync from incomplete lists would delete Services that still exist from the kernel.
        if not self.cluster_state.has_synced:
            return None
        times = [due for due in (self._steps.due(), self._readback.due) if due is not None]
        return max(min(times), self._earliest()) if times else None

    def _earliest(self) -> float:
        if self._has_committed:
            return self._backoff.due()
        node, now = self.cluster_state.node, self._observers.clock()
        return max(self._backoff.due(), self._node_rules.first_sync_due(node, now))

    def addresses_changed(self) -> bool:
        """Read the addresses of node and API servers, and queue what differs.

        The next sync writes it. Only Services that it concerns are routed again. Return False if
        the kernel cannot be read now, and nothing is queued.
        """
        if not self._has_committed:  # The first sync reads the addresses.
            return True
        was_idle = not self._steps
        try:
            is_written = self._node.read_addresses()
        except KernelError as error:
            # Many routes that change all the time interrupt each dump. Other changes go on.
            log.warning("cannot read the node's addresses, trying again: %s", error)
            return False
        if is_written:
            now, name = self._observers.clock(), ObjectName("", self._node_rules.hostname)
            arrival = Arrival(Kind.NODE, name, read_at=now, decoded_at=now, taken_at=now)
            self.cluster_state.pending.node_changed(()).arrived(arrival)
        if was_idle and self._steps:
            self._observers.health.queued()
        return True

    def drifted(self, drift: Drift) -> None:
        """Have the kernel read back after another program changed our objects."""
        self._readback.drifted(self._observers.clock(), drift.by or UNKNOWN, drift.sets)

    def audit(self) -> None:
        """Have the kernel compared now and then, for changes without a notification."""
        now = self._observers.clock()
        if not self._readback.audit_is_due(now):
            return
        try:
            if self._dataplane.start_audit():
                self._readback.audited(now)
                return
        except KernelError as error:
            log.info("cannot start an audit, reading the kernel back: %s", error)
        self._readback.drifted(now, UNKNOWN)

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

    def devices_changed(self) -> None:
        """Have the dataplane follow network devices. Raises PermissionKernelError."""
        try:
            self._dataplane.devices_changed()
        except PermissionKernelError:
            raise
        except KernelError as error:
            # A tick, or the next change of a device, tries again.
            log.warning("cannot follow changes of network devices: %s", error)

    def sync(self) -> None:
        """Bring the kernel one step nearer to the desired state.

        A sync of many changes takes several steps; the next one is then due at once. Blocks for the
        transactions of one step. Raises PermissionKernelError; other failures are retried later.
        """
        began = self._observers.clock()
        times = self.timeline.begin(began)
        self.generation += 1
        if self._readback.is_due(began) and self._repair(times):
            return
        step = Step()
        try:
            # Raises before anything is taken.
            node = self._new_node_routing()
            full = self._readback.is_due(began)
            step = self._take_step(began, node)
            full |= step.full
            if not self._steps:
                self._observers.metrics.changes.taken()
            plan = self._plan_full(step) if full else self._plan_partial(step, node)
            failures = self._commit(plan, times)
        except PermissionKernelError:
            raise
        except KernelError as error:
            self._failed(error, step)
            self.timeline.activities.note(Activity.FAILED_SYNC, began)
            return
        self._has_committed = True
        self.cluster_state.settle()
        # Only the rows of a step without changes are all repairs.
        repair = self._read_back(plan, is_pure=not step.written) if full else None
        self._succeeded(step, failures, times, full=full, repair=repair)

    def _commit(self, plan: P, times: StepTimes) -> tuple[Failure, ...]:
        """Commit a plan, and record the times of that. Raises KernelError."""
        times.planned = self._observers.clock()
        before = self._dataplane.kernel_seconds
        failures = self._dataplane.commit(plan)
        times.committed = self._observers.clock()
        times.kernel = self._dataplane.kernel_seconds - before
        return failures

    def _repair(self, times: StepTimes) -> bool:
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
            failures = self._commit(plan, times)
        except PermissionKernelError:
            raise
        except KernelError as error:
            self._failed(error, Step())
            self.timeline.activities.note(Activity.FAILED_SYNC, times.began)
            return True
        repair = self._read_back(plan, is_pure=True)
        self._succeeded(Step(), failures, times, full=False, repair=repair)
        return True

    def _new_node_routing(self) -> NodeRouting | None:
        """Return the node's routing if it has changed. Raises KernelError."""
        if not self._has_committed:
            return self._node.read_all()
        if self.cluster_state.pending.node is None:
            return None
        node = self._node.newest()
        # None leaves the base rules alone, although all Services are routed again.
        return node if node != self._node.routing else None

    def _take_step(self, now: float, node: NodeRouting | None) -> Step:
        if self._readback.is_due(now) and not self._readback.needs_routing:
            # All that the step writes is then a repair. Changes come with the next step.
            return Step()
        if node is not None:
            self._node.routing = node
        if not self._has_committed:
            early = self._dataplane.write_early(self._node.routing)
            return self._steps.all(self._node.routing, early)
        return self._steps.next(now, self._node.routing)

    def _plan_full(self, step: Step) -> P:
        wanted: Routings = {**self._steps.programmed, **step.written}
        # Lazy, because a dataplane has work to begin before it needs them.
        present = (routing for routing in wanted.values() if routing is not None)
        return self._dataplane.plan_full(present, self._node.routing)

    def _plan_partial(self, step: Step, node: NodeRouting | None) -> P:
        return self._dataplane.plan(Changes(step.written, node))

    def _read_back(self, plan: P, *, is_pure: bool) -> Repair | None:
        """Record a read-back, and the repair if it found another program's changes."""
        now = self._observers.clock()
        drift = self._readback.done(now)
        # Without a drift, such as at the first sync, a difference is no repair.
        if not (drift and plan and is_pure):
            return None
        counts = plan.counts()
        self._observers.metrics.kernel.drift_repaired(counts)
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

    def _succeeded(
        self,
        step: Step,
        failures: Sequence[Failure],
        times: StepTimes,
        *,
        full: bool,
        repair: Repair | None,
    ) -> None:
        now = self._observers.clock()
        self.sync_error = ""
        rejected = {failure.name: failure.error for failure in failures}
        finished = self._steps.committed(step, rejected.keys(), times.began, now)
        # The next step of the same sync does not wait for the least time between two syncs.
        self._backoff.succeeded(now, is_complete=not self._steps)
        self._note_rejected(finished, rejected)
        self._publish(step, finished, times, full=full, repair=repair, left_out=rejected.keys())

    def _note_rejected(
        self, finished: Finished, rejected: Mapping[ObjectName, KernelError]
    ) -> None:
        errors = {service_of(name): error for name, error in rejected.items()}
        for name in self._rejected & finished.routings.keys() - errors.keys():
            self._router.set_rejected(name, None)
        for name, error in errors.items():
            self._router.set_rejected(name, error)
        self._rejected = (self._rejected - finished.routings.keys()) | errors.keys()

    def _failed(self, error: KernelError, step: Step) -> None:
        self.sync_error = str(error)
        self._steps.put_back(step)
        self._node.forget()
        now = self._observers.clock()
        self._backoff.failed(now)
        self._observers.metrics.syncs.failed()
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
        step: Step,
        finished: Finished,
        times: StepTimes,
        *,
        full: bool,
        repair: Repair | None,
        left_out: Collection[ObjectName],
    ) -> None:
        now, change = self._observers.clock(), finished.change
        arrivals = change.arrivals
        written: Routings = {**self._steps.programmed} if full else step.written
        commit = Commit(
            {**self._steps.routings} if full else finished.routings,
            without(written, left_out),
            full,
            self._node.routing.node_port_addresses,
            rejected=self._rejected,
            ended=self._observers.wall_clock(),
            took=now - times.began,
            latency=now - min(each.read_at for each in arrivals) if arrivals else None,
            repair=repair,
        )
        # Listeners run after the commit and must not block, so they delay no packet and no sync.
        for listener in self._observers.listeners:
            listener.committed(commit, self.cluster_state)
        self._observers.health.updated()
        if self._steps:
            self._observers.health.queued()
        is_repair = not (step.changes or step.written)
        self._measure(change, now - times.began, full=full, is_repair=is_repair)
        # A sync of all Services, or a repair, has no changes that are timed one by one.
        self.timeline.finished(times, () if full else arrivals, reads=full or is_repair)

    def _measure(self, change: Change, took: float, *, full: bool, is_repair: bool) -> None:
        metrics, wall = self._observers.metrics, self._observers.wall_clock()
        # A repair, which has no changes, reads the kernel back as a full sync does.
        metrics.syncs.finished(took, wall, full=full or is_repair)
        for family, triggered in change.triggered:
            # Tenants write these times. kube-proxy skips those before its start too, and a negative
            # value would reset the sum of a histogram.
            if triggered > self._started:
                metrics.changes.network_programmed(family, [max(wall - triggered, 0.0)])
        self._event_problems.count()
