"""The Services to route, in the order in which syncs take them.

A sync is made in steps, so that one object delays another by one step at most. There are three
lanes:

- `small`: changed Services of at most a step's rows.
- `large`: changed Services that may have more rows, or whose changes cost as much.
- `rerouted`: unchanged Services that another object's change concerns, such as the Node's.

Namespaces take turns. So ten thousand changes in one namespace delay a change in another by one
Service.

Services of one lane and namespace keep the order of their first change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from pyproxy.model.address import Family
from pyproxy.model.objects import Kind, ObjectName

_REMEMBERED = 1_000
"""Changes of one Service whose times are kept for metrics."""

# Ordered dictionaries, because removing the first key of a dict takes longer each time.
_Names = OrderedDict[ObjectName, None]
_Lane = OrderedDict[str, _Names]


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One event on its way: the object, and the monotonic times of its first phases.

    It was read, then decoded and put into the inbox, then taken by the agent's thread.
    """

    kind: Kind
    name: ObjectName
    read_at: float
    decoded_at: float
    taken_at: float


class Change(msgspec.Struct):
    """The events since a Service was routed last.

    `triggered` are the trigger times of changed EndpointSlices, in seconds since the epoch, with
    their families.
    """

    arrivals: list[Arrival] = msgspec.field(default_factory=list)
    triggered: list[tuple[Family, float]] = msgspec.field(default_factory=list)

    def arrived(self, arrival: Arrival) -> None:
        """Add an event."""
        if len(self.arrivals) < _REMEMBERED:
            self.arrivals.append(arrival)

    def trigger(self, family: Family, at: float) -> None:
        """Add the trigger time of a changed EndpointSlice."""
        if len(self.triggered) < _REMEMBERED:
            self.triggered.append((family, at))

    def add(self, other: Change) -> None:
        """Take over the times of another change."""
        self.arrivals += other.arrivals[: _REMEMBERED - len(self.arrivals)]
        self.triggered += other.triggered[: _REMEMBERED - len(self.triggered)]


class PendingChanges:
    """The queue of Services to route. `is_large` returns whether a change belongs to that lane.

    `node` is the change of the Node, None if it has not changed.
    """

    def __init__(self, is_large: Callable[[ObjectName], bool]) -> None:
        self._is_large = is_large
        self._changes: dict[ObjectName, Change] = {}
        self._small: _Lane = OrderedDict()
        self._large: _Lane = OrderedDict()
        self._rerouted: _Names = OrderedDict()
        self.node: Change | None = None

    def __bool__(self) -> bool:
        return bool(self._changes or self._rerouted) or self.node is not None

    def __len__(self) -> int:
        return len(self._changes.keys() | self._rerouted.keys())

    @property
    def has_small(self) -> bool:
        """Whether a change waits that is never delayed."""
        return bool(self._small) or self.node is not None

    @property
    def has_large(self) -> bool:
        """Whether a changed Service waits in the lane of large ones."""
        return bool(self._large)

    @property
    def has_rerouted(self) -> bool:
        """Whether an unchanged Service waits that another object's change concerns."""
        return bool(self._rerouted)

    def add(self, name: ObjectName) -> Change:
        """Queue a changed Service behind the others of its lane; return its change to fill in."""
        change = self._changes.get(name)
        if change is None:
            change = self._changes[name] = Change()
        lane, other = self._lanes(name)
        # A Service that has grown or shrunk changes lanes.
        _discard(other, name)
        lane.setdefault(name.namespace, OrderedDict()).setdefault(name)
        return change

    def node_changed(self, services: Iterable[ObjectName]) -> Change:
        """Queue all Services; those that wait for an earlier change of the Node keep their places.

        Return the Node's change to fill in.
        """
        self.reroute(services)
        if self.node is None:
            self.node = Change()
        return self.node

    def reroute(self, names: Iterable[ObjectName]) -> None:
        """Queue Services that have not changed; those that wait already keep their places."""
        for name in names:
            self._rerouted.setdefault(name)

    def small(self) -> Iterator[ObjectName]:
        """Yield small Services, one of each namespace in turn; each must then be taken."""
        return _turns(self._small)

    def large(self) -> Iterator[ObjectName]:
        """Yield large Services, one of each namespace in turn; each must then be taken."""
        return _turns(self._large)

    def rerouted(self) -> Iterator[ObjectName]:
        """Yield Services that only another object's change concerns; each must then be taken."""
        while self._rerouted:
            name, _ = self._rerouted.popitem(last=False)
            if name not in self._changes:
                yield name

    def take(self, name: ObjectName) -> Change:
        """Remove a Service that is routed now from all lanes; return its change, maybe empty."""
        self._rerouted.pop(name, None)
        change = self._changes.pop(name, None)
        if change is None:
            return Change()
        _discard(self._small, name)
        _discard(self._large, name)
        return change

    def take_all(self) -> Mapping[ObjectName, Change]:
        """Empty all lanes; return all changed Services."""
        changes = self._changes
        self._changes = {}
        for lane in (self._small, self._large, self._rerouted):
            lane.clear()
        return changes

    def put_back(self, changes: Mapping[ObjectName, Change]) -> None:
        """Queue the Services of a failed step again, before the others of their namespaces."""
        for name, change in reversed(list(changes.items())):
            # The latency of a change counts from its first reading, also if a retry commits it.
            change.add(self._changes.pop(name, Change()))
            self._changes[name] = change
            lane, other = self._lanes(name)
            _discard(other, name)
            names = lane.setdefault(name.namespace, OrderedDict())
            names[name] = None
            names.move_to_end(name, last=False)

    def _lanes(self, name: ObjectName) -> tuple[_Lane, _Lane]:
        """Return the lane that a change belongs to, and the other one."""
        if self._is_large(name):
            return self._large, self._small
        return self._small, self._large


def _turns(lane: _Lane) -> Iterator[ObjectName]:
    while lane:
        namespace, names = lane.popitem(last=False)
        name, _ = names.popitem(last=False)
        if names:
            # Behind the other namespaces.
            lane[namespace] = names
        yield name


def _discard(lane: _Lane, name: ObjectName) -> None:
    names = lane.get(name.namespace)
    if names is not None and name in names:
        del names[name]
        if not names:
            del lane[name.namespace]
