"""The steps of a sync: which changes are routed and written next.

A step has about as many rows as the dataplane's `StepLimits` say, whatever the objects are. Between
two steps the agent reads its inbox. So a small change waits for the step in progress, and then for
at most one step of other work: large Services, and Services that a change of the Node concerns.
A failed step comes first, because the frontends of its Services are assigned already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from itertools import islice

import msgspec

from pyproxy.agent.backoff import WorkLimiter
from pyproxy.agent.cluster_state import ClusterState, has_cluster_ips_only
from pyproxy.agent.divided import DividedServices, Written
from pyproxy.agent.pending import Change
from pyproxy.agent.service_router import Routings, ServiceRouter
from pyproxy.dataplane.committed_state import replace
from pyproxy.dataplane.interface import EarlyWriter, NodeRouting, StepLimits
from pyproxy.model.objects import ObjectName
from pyproxy.policy.parts import row_count, service_of
from pyproxy.policy.routing import ServiceRouting

_LEAST_ROWS = 8
"""Rows that routing a Service costs at least, as the work of a step is counted."""


class Step(msgspec.Struct):
    """A part of a sync.

    `written` is what the dataplane writes, by Service or part of one. `changes` are the Services
    that were routed, `whole` the routings of those among them that are not divided. `background`
    says that it is other work than small changes, and `full` that it is to be planned from a
    read-back. `node` is the change of the Node, if it is written too.
    """

    written: Written = msgspec.field(default_factory=dict)
    changes: dict[ObjectName, Change] = msgspec.field(default_factory=dict)
    whole: Routings = msgspec.field(default_factory=dict)
    background: bool = False
    full: bool = False
    node: Change | None = None


class Finished(msgspec.Struct, frozen=True):
    """The Services that a committed step completes, their routings, and their changes as one."""

    routings: Routings
    change: Change


class Steps:
    """Routes what is pending, step by step, and remembers what is programmed.

    `programmed` is what the dataplane has, by Service or part of one. `routings` are the Services
    that are complete.
    """

    def __init__(
        self, cluster_state: ClusterState, router: ServiceRouter, limits: StepLimits
    ) -> None:
        self.programmed: dict[ObjectName, ServiceRouting] = {}
        self.routings: dict[ObjectName, ServiceRouting] = {}
        self._cluster_state = cluster_state
        self._pending = cluster_state.pending
        self._router = router
        self._limits = limits
        self._limiter = WorkLimiter()
        self._divided = DividedServices()
        # Changes of divided Services whose parts are not all written.
        self._unfinished: dict[ObjectName, Change] = {}
        self._rejected: frozenset[ObjectName] = frozenset()
        # The Services of a failed step, between which frontends may move.
        self._failed: dict[ObjectName, None] = {}
        self._small_last = False
        self._parts_last = False

    def __bool__(self) -> bool:
        """Return whether anything is pending or unfinished."""
        return bool(self._pending) or self._divided.is_unfinished

    def __len__(self) -> int:
        return len(self._pending) + len(self._unfinished)

    def due(self) -> float | None:
        """Return the earliest time of the next step; None if there is nothing to do."""
        if self._pending.has_small:
            return 0.0
        return self._limiter.due if self else None

    def all(self, node: NodeRouting, early: EarlyWriter | None = None) -> Step:
        """Route all Services: the first sync is one step.

        `early` writes those that no other Service's routing can change, and that stay undivided.
        """
        step = Step(changes=dict(self._pending.take_all()), node=self._take_node(), full=True)
        self._failed.clear()
        services = self._cluster_state.services
        # The order is that of reading and not of a hash, because objects that were read together
        # lie together in memory. Removed Services must give up their frontends.
        names = [*services, *(name for name in step.changes if name not in services)]
        large: list[ObjectName] = []
        routed = self._router.route(names, node, self._sorter(large, early))
        # Those that lost a frontend to a Service that was routed after them.
        again = self._router.route(self._pending.rerouted(), node)
        routed |= again
        if large or again or self.programmed or self._divided:
            self._add(routed, step)
        else:
            step.whole, step.written = routed, {**routed}
        step.written |= self._divided.take(sys.maxsize)
        return step

    def _sorter(
        self, large: list[ObjectName], early: EarlyWriter | None
    ) -> Callable[[ServiceRouting], None]:
        """Return a function that notes large Services and has independent small ones written."""
        sharing = self._cluster_state.sharing_services() if early else ()
        services, limits = self._cluster_state.services, self._limits

        def sort(routing: ServiceRouting) -> None:
            size = row_count(routing)
            if size > limits.large:
                large.append(routing.name)
            elif early is not None and size <= limits.rows:
                name = routing.name
                if has_cluster_ips_only(services[name]) and not (sharing and name in sharing):
                    early.add(routing, size)

        return sort

    def next(self, now: float, node: NodeRouting) -> Step:
        """Route and return the next step; empty if nothing is due."""
        if self._router.divides_node_ports:
            self._cluster_state.node_addresses = len(node.node_port_addresses)
        pending = self._pending
        if self._failed:
            # First and together: their frontends are assigned already, so any other step, or a
            # part of these, would write a frontend that another Service still has.
            again, self._failed = self._failed, {}
            step = Step(node=self._take_node(), background=True)
            for name in again:
                self._route_one(name, node, step)
            return step
        work = (pending.has_large or pending.has_rerouted or self._divided.is_unfinished) and (
            self._limiter.due <= now
        )
        if work and (self._small_last or not pending.has_small):
            self._small_last = False
            return self._background(node)
        self._small_last = True
        step = Step(node=self._take_node())
        if step.node is not None:
            # Node ports gain or lose these Services' frontends with the addresses.
            self._add(self._taken(self._router.route((), node), step), step)
        self._route(pending.small(), node, step)
        return step

    def put_back(self, step: Step) -> None:
        """Have a step that failed made again."""
        self._pending.put_back(step.changes)
        self._divided.restore(step.written)
        self._failed |= dict.fromkeys(step.changes)
        if step.node is not None:
            self._pending.node_changed(()).add(step.node)

    def committed(
        self, step: Step, rejected: Collection[ObjectName], began: float, ended: float
    ) -> Finished:
        """Record a committed step; `rejected` are the Services and parts that the kernel refused.

        Times are monotonic, in seconds.
        """
        if step.background:
            self._limiter.worked(began, ended)
        replace(self.programmed, without(step.written, rejected))
        done = self._divided.committed(step.written, rejected)
        refused = {service_of(name) for name in rejected}
        done |= without(step.whole, refused)
        if self._rejected or refused:
            self._set_rejected((self._rejected - done.keys()) | refused)
        replace(self.routings, done)
        return Finished(done, self._finish(step, done.keys() | refused if refused else done.keys()))

    def _finish(self, step: Step, done: AbstractSet[ObjectName]) -> Change:
        change = step.node if step.node is not None else Change()
        for name, each in step.changes.items():
            if name in done:
                change.add(each)
            else:
                self._unfinished.setdefault(name, Change()).add(each)
        for name in [name for name in self._unfinished if name in done]:
            change.add(self._unfinished.pop(name))
        return change

    def _set_rejected(self, names: frozenset[ObjectName]) -> None:
        self._rejected = names
        self._cluster_state.costly |= names

    def _take_node(self) -> Change | None:
        node, self._pending.node = self._pending.node, None
        return node

    def _background(self, node: NodeRouting) -> Step:
        """Return a step of large Services, or of those that the Node's change concerns, in turn."""
        step = Step(background=True)
        pending = self._pending
        large = pending.has_large or self._divided.is_unfinished
        if large and not (self._parts_last and pending.has_rerouted):
            self._parts_last = True
            # Parts first: a Service that changes all the time would otherwise never be complete.
            if not self._divided.is_unfinished:
                self._route(islice(pending.large(), 1), node, step)
            step.written |= self._divided.take(self._limits.rows)
        else:
            self._parts_last = False
            self._route(pending.rerouted(), node, step)
        return step

    def _route(self, names: Iterable[ObjectName], node: NodeRouting, step: Step) -> None:
        """Route Services until the step has enough rows."""
        rows = 0
        for name in names:
            rows += self._route_one(name, node, step)
            if rows >= self._limits.rows:
                break

    def _route_one(self, name: ObjectName, node: NodeRouting, step: Step) -> int:
        """Add a Service, and those that it affects, to a step; return the rows to compare."""
        routed = self._taken(self._router.route((name,), node), step)
        compared = self._add(routed, step)
        self._note_cost(name, routed, compared)
        return compared

    def _taken(self, routed: Routings, step: Step) -> Routings:
        """Take the changes of routed Services into a step; return their routings."""
        # A rejected Service may have been written in part: only a read-back shows that.
        step.full |= not self._rejected.isdisjoint(routed)
        for each in routed:
            change = self._pending.take(each)
            if each in step.changes:
                step.changes[each].add(change)
            else:
                step.changes[each] = change
        return routed

    def _add(self, routed: Routings, step: Step) -> int:
        """Add routings to a step; return the rows that this compares."""
        rows = 0
        added: list[ObjectName] = []
        # Local names, because a first sync adds all Services.
        programmed, whole, written = self.programmed, step.whole, step.written
        most = self._limits.large if self._limits.divides else sys.maxsize
        has_divided = bool(self._divided)
        for name, routing in routed.items():
            before, size = programmed.get(name), row_count(routing)
            if size > most or (has_divided and name in self._divided):
                self._divided.replace(name, routing, before)
                rows += min(size, self._limits.rows)
                continue
            whole[name] = routing
            rows += _LEAST_ROWS + size
            if before is not None:
                # Most of the Services that the Node's change concerns stay as they are. One that
                # this step was to change gained a frontend and lost it again, and is written.
                if routing == before and name not in written:
                    rows -= size
                    continue
                rows += row_count(before)
            written[name] = routing
            added.append(name)
        if self._divided:
            sides = ((self.programmed.get(name), step.written[name]) for name in added)
            moving = [each for both in sides for each in both if each is not None]
            step.written |= self._divided.take_moving(moving)
        return rows

    def _note_cost(self, name: ObjectName, routed: Routings, rows: int) -> None:
        """Have a change that concerns a divided Service, or many, wait in the lane of large ones.

        `rows` are those that it compared.
        """
        costly = self._cluster_state.costly
        # The Service itself, before and after, has at most twice the rows of a large one.
        is_costly = len(routed) > 1 and rows > 2 * self._limits.large + _LEAST_ROWS
        if is_costly or (self._divided and any(each in self._divided for each in routed)):
            costly.add(name)
        elif name in costly and name not in self._rejected:
            costly.discard(name)


def without(routings: Routings, names: Collection[ObjectName]) -> Routings:
    """Return the routings of all Services but these; mostly the same dict."""
    if not names:
        return routings
    return {name: routing for name, routing in routings.items() if name not in names}
