"""The state that a dataplane committed last: the Services' routings, and the node's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar, cast

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting

R = TypeVar("R", bound=Hashable)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Routings = Mapping[ObjectName, ServiceRouting | None]
"""Routings by Service; None stands for a Service that is gone."""


class CommittedState(Generic[R]):
    """The routings of all Services, the node's routing, and the users of each shared row.

    A shared row is one that several Services may need, such as a cluster IP. It exists in the
    kernel while at least one Service needs it. `shared_rows` yields those of one Service, a row
    that it needs twice twice.
    """

    def __init__(self, shared_rows: Callable[[ServiceRouting], Iterable[R]]) -> None:
        self._shared_rows = shared_rows
        self.services: dict[ObjectName, ServiceRouting] = {}
        self.node = NodeRouting()
        self.users: Counter[R] = Counter()

    def growth(self, routings: Routings) -> Counter[R]:
        """Return the change in each shared row's users when these routings replace the old ones."""
        growth: Counter[R] = Counter()
        for name in routings:
            self._add_growth(growth, name, routings, whole=False)
        return growth

    def growth_of(self, name: ObjectName, routings: Routings, *, whole: bool) -> Counter[R]:
        """Return one Service's part in the growth; a whole commit counts users from nothing."""
        growth: Counter[R] = Counter()
        self._add_growth(growth, name, routings, whole=whole)
        return growth

    def _add_growth(
        self, growth: Counter[R], name: ObjectName, routings: Routings, *, whole: bool
    ) -> None:
        old, new = self.services.get(name), routings[name]
        # `subtract` keeps counts below 0, which the operator `-` would leave out.
        if old and not whole:
            growth.subtract(self._shared_rows(old))
        if new:
            growth.update(self._shared_rows(new))

    def is_needed(self, row: R, growth: Mapping[R, int] | None = None) -> bool:
        """Return whether a shared row has users, after `growth` where that is given."""
        return self.users[row] + (growth.get(row, 0) if growth else 0) > 0

    def of(self, name: ObjectName, routings: Routings) -> Iterator[ServiceRouting]:
        """Yield what is committed of a Service, and what these routings make of it."""
        for routing in (self.services.get(name), routings.get(name)):
            if routing:
                yield routing

    def remember(
        self,
        routings: Routings,
        growth: Mapping[R, int],
        node: NodeRouting | None = None,
        *,
        whole: bool = False,
        left_out: Collection[ObjectName] = (),
    ) -> None:
        """Record a commit; `whole` says that it was made of all Services, from a read-back.

        `growth` includes the Services in `left_out`, which keep what was committed of them.
        """
        if left_out:
            less = Counter(growth)
            for name in left_out:
                less.subtract(self.growth_of(name, routings, whole=whole))
            growth = less
            routings = {name: each for name, each in routings.items() if name not in left_out}
        if whole:
            self.services.clear()
            self.users.clear()
        if node is not None:
            self.node = node
        replace(self.services, routings)
        self.users.update(growth)
        # Rows without users are deleted: the counter would grow with every row that ever existed.
        for row in [row for row, by in growth.items() if by <= 0]:
            if self.users[row] <= 0:
                del self.users[row]

    def keep(self, routings: Mapping[ObjectName, ServiceRouting]) -> None:
        """Record routings that a commit of all Services has left in the kernel."""
        self.services.update(routings)
        for routing in routings.values():
            self.users.update(self._shared_rows(routing))


def replace(state: dict[K, V], changes: Mapping[K, V | None]) -> None:
    """Apply changes to a state; None removes a key, known or not."""
    # A first sync has tens of thousands of keys and no None. It needs no loop here, and `update`
    # with a dict computes no hash again.
    if not all(changes.values()):
        for key in [key for key, value in changes.items() if value is None]:
            state.pop(key, None)
        changes = {key: value for key, value in changes.items() if value is not None}
    state.update(cast("Mapping[K, V]", changes))
