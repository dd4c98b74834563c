"""The agent's one decision maker: events in, one transaction out, and what follows from it.

It runs in one thread, reads no clock and waits for nothing, so that a test can put it through a
year in a moment. `loop` gives it events and time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Generic, Protocol

import msgspec

from pyproxy.agent.backoff import RepairLimiter, SyncBackoff
from pyproxy.agent.cluster_state import ClusterState, PendingChanges
from pyproxy.agent.node import NodeRules
from pyproxy.agent.problems import ProblemTracker
from pyproxy.dataplane.interface import Changes, Dataplane, Drift, Failure, NodeRouting, P
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    Problem,
    ProblemReason,
    StaleStateError,
)
from pyproxy.health.state import Health
from pyproxy.inspect.snapshot import Repair
from pyproxy.metrics import Metrics
from pyproxy.model.address import Address
from pyproxy.model.events import Delete, Event, InvalidObject, Synced, Upsert
from pyproxy.model.objects import EndpointSlice, Kind, Node, ObjectName, Service
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.frontend_conflicts import Assignment, FrontendOwners
from pyproxy.policy.routing import ServiceRouting, expand_node_ports

log = logging.getLogger(__name__)

_LOUD_AFTER = 3
"""Failures in a row after which a retry is a warning."""

_AUDIT_PERIOD = 600.0
"""Seconds between two readings of the kernel that nothing asks for."""

_SECOND_LOOK = 1.0
"""Seconds from a repair to a reading that makes sure of it."""

_BETWEEN_LOOKS = 0.5
"""Seconds at least between two readings, however much others write."""

_SAMPLE = 3
"""Lines of a repair that are logged."""


class Commit(msgspec.Struct, frozen=True):
    """What has just become so; `whole` says that these are all Services there are.

    `refused` are those of which the kernel holds what it held before. `ended` is in seconds since
    the epoch, `took` in seconds, and so is `latency`, from the reading of the oldest change to its
    commit; it is None where nothing was read for this one. `repair` is what somebody else's write
    had made necessary.
    """

    routings: Mapping[ObjectName, ServiceRouting | None]
    whole: bool
    node_port_addresses: tuple[Address, ...]
    refused: frozenset[ObjectName] = frozenset()
    ended: float = 0.0
    took: float = 0.0
    latency: float | None = None
    repair: Repair | None = None


class CommitListener(Protocol):
    """Whoever acts on commits without holding them up: it only takes note here."""

    def committed(self, commit: Commit, world: ClusterState) -> None:
        """Take note of a commit; the world is as it was committed, and must not be kept."""
        ...


class Observers(msgspec.Struct, frozen=True):
    """Whom the agent tells; `clock` is monotonic and `wall_clock` the epoch's, both in seconds."""

    metrics: Metrics
    health: Health
    listeners: Sequence[CommitListener]
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    report: Callable[[Problem], None]


class Agent(Generic[P]):
    """Keeps one dataplane in step with what it hears."""

    def __init__(
        self,
        dataplane: Dataplane[P],
        node_rules: NodeRules,
        pace: SyncBackoff,
        observers: Observers,
    ) -> None:
        self.world = ClusterState()
        self._dataplane = dataplane
        self._node_rules = node_rules
        self._pace = pace
        self._tell = observers
        self._problems = ProblemTracker(observers.report)
        self._claims = FrontendOwners()
        self._node = NodeRouting()
        self._repairs = RepairLimiter()
        self._refused: set[ObjectName] = set()
        self._troubled: set[ObjectName] = set()
        self._look_at: float | None = 0.0
        self._drift = ""
        self._audited = observers.clock()

    @property
    def node_routing(self) -> NodeRouting:
        """What the last sync took the node for."""
        return self._node

    def problems(self) -> tuple[Problem, ...]:
        """Give what is wrong now with any object, in the order in which it was found."""
        return self._problems.problems()

    def handle_event(self, event: Event) -> None:
        """Take in one event; nothing is written yet."""
        quiet = not self.world.pending()
        changed = self.world.handle_event(event)
        match event:
            case Upsert(obj=Node() as node):
                self._tell.health.set_node_eligible(node.eligible)
                self._track(Kind.NODE, node.name, node.problems)
            case Upsert(obj=Service() | EndpointSlice() as obj):
                kind = Kind.SERVICE if isinstance(obj, Service) else Kind.ENDPOINT_SLICE
                self._track(kind, obj.name, obj.problems)
            case Delete(kind=kind, name=name):
                self._track(kind, name, ())
                if kind is Kind.NODE and changed:
                    self._tell.health.set_node_eligible(eligible=False)
            case Synced(kind=kind, names=names, invalid=aside):
                self._problems.remain(
                    "its text", kind, lambda name: name in aside or _parsed(name) in names
                )
            case InvalidObject(problem=problem):
                self._problems.found("its text", (problem.kind, problem.name), (problem,))
        self._count_problems()  # for perhaps there is nothing that a sync would be due for
        if changed is not None:
            self._tell.metrics.change_queued(changed, self._tell.wall_clock())
        if quiet and self.world.pending():
            self._tell.health.queued()

    def due(self) -> float | None:
        """Give the monotonic time for the next sync, None while there is nothing to do."""
        if not self.world.whole:
            return None
        if self.world.pending():
            return self._pace.due()
        return None if self._look_at is None else max(self._look_at, self._pace.due())

    def addresses_changed(self) -> None:
        """Have everything answered again where this machine's new addresses matter."""
        try:
            if self._node_rules.routing(self.world.node) == self._node:
                return
        except KernelError as error:
            # A sync asks again, and knows when to retry.
            log.debug("cannot tell whether addresses have changed: %s", error)
        if not self.world.pending():
            self._tell.health.queued()
        self.world.touch_everything()

    def drifted(self, drift: Drift) -> None:
        """Have the kernel read back: somebody else has written to what is ours."""
        now = self._tell.clock()
        when = max(self._repairs.due(now), self._audited + _BETWEEN_LOOKS)
        self._look(when, drift.by or "somebody")

    def audit(self) -> None:
        """Have the kernel read back once in a long while, for what no notification told."""
        now = self._tell.clock()
        if now - self._audited >= _AUDIT_PERIOD and self._look_at is None:
            self._look(now, "somebody unnoticed")

    def tick(self) -> None:
        """Let the dataplane do what has a pace of its own."""
        try:
            drift = self._dataplane.tick()
        except PermissionKernelError:
            raise
        except KernelError as error:
            # What the kernel holds is the ground to stand on, and a reading retries by itself.
            log.warning("looking after what the kernel holds failed, reading it back: %s", error)
            drift = Drift("")
        if drift is not None:
            self.drifted(drift)

    def _look(self, when: float, because_of: str) -> None:
        if self._look_at is None or when < self._look_at:
            self._look_at = when
        self._drift = self._drift or because_of

    def sync(self) -> None:
        """Bring the kernel to what is known. Raises PermissionKernelError; other failures retry."""
        began = self._tell.clock()
        touched = self.world.take()
        self._tell.metrics.changes_taken()
        looking = self._look_at is not None and self._look_at <= began
        # What the kernel holds of a Service that it refused, only the kernel can tell.
        whole = looking or not self._refused.isdisjoint(touched.services)
        try:
            plan, routings = self._plan_whole(touched) if whole else self._plan_changes(touched)
            failures = self._dataplane.commit(plan)
        except PermissionKernelError:
            raise
        except KernelError as error:
            self._failed(error, touched)
            return
        repair = self._looked(plan) if whole else None
        done = self._succeeded(routings, failures)
        self._publish(touched, done, began, whole=whole, repair=repair)

    def _looked(self, plan: P) -> Repair | None:
        now = self._tell.clock()
        drift, self._drift = self._drift, ""
        self._audited, self._look_at = now, None
        if not drift or not plan:
            return None
        counts = plan.counts()
        self._tell.metrics.drift_repaired(counts)
        log.warning(
            "repaired what %s changed: %s: %s",
            drift,
            ", ".join(f"{count} {kind}" for kind, count in counts.items()),
            "; ".join(islice(plan.lines(), _SAMPLE)),
        )
        fought = self._repairs.fighting
        self._repairs.repaired(now)
        if self._repairs.fighting and not fought:
            self._fight(drift)
        # Whatever was written while the repair went on was not announced to us.
        self._look(self._repairs.due(now + _SECOND_LOOK), drift)
        return Repair(self._tell.wall_clock(), drift, dict(counts))

    def _fight(self, drift: str) -> None:
        problem = Problem(
            Kind.NODE.value,
            self._node_rules.hostname,
            self._dataplane.name,
            f"{drift} keeps undoing what pyproxy writes; repairs are put off so that the two do "
            "not wear the node out: stop that program, or have it leave alone what is pyproxy's",
        )
        log.warning("%s", problem)
        self._tell.report(problem)

    def _plan_whole(
        self, touched: PendingChanges
    ) -> tuple[P, dict[ObjectName, ServiceRouting | None]]:
        self._node = self._node_rules.routing(self.world.node)
        routings = self._route(self._all(touched))
        held = [routing for routing in routings.values() if routing is not None]
        return self._dataplane.plan_full(held, self._node), routings

    def _plan_changes(
        self, touched: PendingChanges
    ) -> tuple[P, dict[ObjectName, ServiceRouting | None]]:
        names: Iterable[ObjectName] = touched.services
        node = None
        if touched.everything:
            names = self._all(touched)
            now = self._node_rules.routing(self.world.node)
            node = now if now != self._node else None
            self._node = now
        routings = self._route(names)
        return self._dataplane.plan(Changes(routings, node)), routings

    def _all(self, touched: PendingChanges) -> Iterable[ObjectName]:
        # Those touched too: what is gone must let go of its claims. And not in the order of a hash:
        # what was read together lies together in memory.
        services = self.world.services
        return [*services, *touched.services.difference(services)]

    def _route(self, names: Iterable[ObjectName]) -> dict[ObjectName, ServiceRouting | None]:
        routings: dict[ObjectName, ServiceRouting | None] = {}
        queue = list(names)
        for name in queue:  # which grows meanwhile
            also, routings[name] = self._route_one(name)
            if also:
                queue.extend(also)
        return routings

    def _route_one(self, name: ObjectName) -> tuple[frozenset[ObjectName], ServiceRouting | None]:
        service = self.world.services.get(name)
        if service is None:
            for by in ("its answer", "its claims", "the kernel"):
                self._found(by, name, ())
            self._troubled.discard(name)
            return self._claims.remove(name), None
        try:
            assigned = self._grant(service)
        except Exception as error:
            # Whatever this is, it is our mistake, and must cost this Service alone: an agent that
            # ended here would end at every start, and the whole node would be left behind.
            log.exception("Service %s could not be answered, which is a mistake in pyproxy", name)
            self._found("its answer", name, (_foiled(name, error),))
            return self._claims.remove(name), None
        # Nearly every Service is well, and has nothing to be forgotten.
        if assigned.problems or name in self._troubled:
            self._found("its answer", name, ())
            self._found("its claims", name, assigned.problems)
        return assigned.affected, assigned.routing

    def _grant(self, service: Service) -> Assignment:
        slices = self.world.slices_of(service.name)
        routing = route_service(service, slices, self.world.node, self._node_rules.hostname)
        routing = expand_node_ports(routing, self._node.node_port_addresses)
        return self._claims.assign(service, routing)

    def _succeeded(
        self, routings: dict[ObjectName, ServiceRouting | None], failures: Sequence[Failure]
    ) -> dict[ObjectName, ServiceRouting | None]:
        """Note what the kernel refused; the answers that it took."""
        self._pace.succeeded(self._tell.clock())
        refused = {failure.name: failure.error for failure in failures}
        for name in self._refused & routings.keys() - refused.keys():
            self._found("the kernel", name, ())
        for name, error in refused.items():
            self._found("the kernel", name, (_refused(name, error),))
        self._refused = (self._refused - routings.keys()) | refused.keys()
        if not refused:
            return routings
        return {name: routing for name, routing in routings.items() if name not in refused}

    def _publish(
        self,
        touched: PendingChanges,
        done: dict[ObjectName, ServiceRouting | None],
        began: float,
        *,
        whole: bool,
        repair: Repair | None,
    ) -> None:
        now = self._tell.clock()
        commit = Commit(
            done,
            whole,
            self._node.node_port_addresses,
            refused=frozenset(self._refused),
            ended=self._tell.wall_clock(),
            took=now - began,
            latency=now - min(touched.read_at) if touched.read_at else None,
            repair=repair,
        )
        for follower in self._tell.listeners:
            follower.committed(commit, self.world)
        self._tell.health.updated()
        self._measure(touched, now - began, now, whole=whole)

    def _measure(self, touched: PendingChanges, took: float, now: float, *, whole: bool) -> None:
        metrics, wall = self._tell.metrics, self._tell.wall_clock()
        metrics.sync_finished(took, wall, full=whole)
        if not whole:
            metrics.programmed([now - read_at for read_at in touched.read_at])
        for each in touched.triggered:
            metrics.network_programmed(each.family, [wall - each.triggered])
        self._count_problems()

    def _count_problems(self) -> None:
        if not self._problems.changed:
            return
        for kind, count in self._problems.counts().items():
            self._tell.metrics.invalid(kind, count)

    def _failed(self, error: KernelError, touched: PendingChanges) -> None:
        self.world.put_back(touched)
        self._pace.failed(self._tell.clock())
        self._tell.metrics.sync_failed()
        self._tell.health.queued()
        # Whatever the kernel refused as a whole, what it holds is the ground to stand on.
        self._look_at = self._tell.clock()
        out_of_step = isinstance(error, StaleStateError) and self._pace.failures < _LOUD_AFTER
        level = logging.INFO if out_of_step else logging.WARNING
        log.log(level, "the kernel refused a sync, reading it back to try again: %s", error)

    def _found(self, by: str, name: ObjectName, problems: tuple[Problem, ...]) -> None:
        if problems:
            self._troubled.add(name)
        elif name not in self._troubled:
            return
        self._problems.found(by, (Kind.SERVICE.value, str(name)), problems)

    def _track(self, kind: Kind, name: ObjectName | str, problems: tuple[Problem, ...]) -> None:
        # Nearly every object is well, and a list has tens of thousands.
        if problems or self._problems:
            self._problems.found("its text", (kind.value, str(name)), problems)


def _parsed(name: str) -> ObjectName:
    namespace, _, last = name.rpartition("/")
    return ObjectName(namespace, last)


def _foiled(name: ObjectName, error: Exception) -> Problem:
    return Problem(
        Kind.SERVICE.value,
        str(name),
        "spec",
        f"pyproxy made a mistake with it ({type(error).__name__}: {error}) and serves it no more "
        "until it changes: please report this with the object",
    )


def _refused(name: ObjectName, error: KernelError) -> Problem:
    return Problem(
        Kind.SERVICE.value,
        str(name),
        "spec",
        f"the kernel refused it ({error}); what it held of it stays until the Service changes",
        ProblemReason.REJECTED_BY_KERNEL,
    )
