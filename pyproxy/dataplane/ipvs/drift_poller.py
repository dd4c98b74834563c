"""What has to be looked at now and then: connections that end, and what others change in silence.

IPVS tells nobody of changes. Its number of services costs one system call, and a few virtual
services in turn are looked at closely; a small table is looked at whole each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice

from pyproxy.dataplane.ipvs.draining import Draining
from pyproxy.dataplane.ipvs.kernel import Kernel
from pyproxy.dataplane.ipvs.schema import ADDRESSES_ON_DEVICE, SERVERS, VIRTUALS, ServerKey, Table
from pyproxy.model.address import Address, Backend
from pyproxy.netlink.ipvs import Server, Virtual

PATIENCE = 3600.0
"""Seconds that connections to an endpoint which nobody wants may last. Idle ones end by themselves
after the kernel's own timeout, 15 minutes unless told otherwise."""

_AT_A_TIME = 32
"""Virtual services asked about in one go."""


class Deadlines:
    """Until when each server that is leaving may stay; `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[ServerKey, float] = {}
        self._turn: Iterator[Virtual] = iter(())

    def follow(self, leaving: Draining) -> None:
        """Take note of who is leaving now; who was already keeps its time."""
        latest = self._clock() + PATIENCE
        self._until = {key: self._until.get(key, latest) for key in leaving.pairs()}

    def done(
        self,
        leaving: Draining,
        servers: Callable[[Virtual], Sequence[Server]],
        in_the_way: Callable[[Virtual], bool],
    ) -> set[ServerKey]:
        """Ask about some of those that are leaving: who has no connections left, or no time.

        Where a virtual service is, the node itself gets nothing on that port, and another machine
        nothing on any port of that address. So where nobody wants one any more that may be
        `in_the_way`, it does not wait for connections that have been closed to be forgotten.
        Raises KernelError.
        """
        if not self._until:
            return set()
        found: set[ServerKey] = set()
        for virtual in self._next(leaving):
            backends = leaving.servers.get(virtual, frozenset[Backend]())
            presses = virtual in leaving.virtuals and in_the_way(virtual)
            busy = {
                each.backend
                for each in servers(virtual)
                if (each.active if presses else each.connections)
            }
            found.update((virtual, backend) for backend in backends - busy)
        now = self._clock()
        return found | {key for key, until in self._until.items() if until <= now}

    def _next(self, leaving: Draining) -> list[Virtual]:
        some = list(islice(self._turn, _AT_A_TIME))
        if not some:
            self._turn = iter(list(leaving.servers))
            some = list(islice(self._turn, _AT_A_TIME))
        return some


class DriftPoller:
    """Compares the kernel with what it should hold, a little at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._own: AbstractSet[Address] = frozenset()
        self._count: int | None = None
        self._turn: Iterator[Virtual] = iter(())

    def begin(self, own: AbstractSet[Address]) -> None:
        """Take the kernel for right as it is now; `own` are the addresses of other devices."""
        self._own = own
        self._count = None

    def finds(self, held: Table) -> bool:
        """Tell whether somebody has changed something of ours. Raises KernelError."""
        return self._miscounted() or self._readdressed(held) or self._rewritten(held)

    def _miscounted(self) -> bool:
        count, before = self._kernel.count(), self._count
        self._count = count
        return before not in (None, count)

    def _readdressed(self, held: Table) -> bool:
        if not self._kernel.addresses_changed():
            return False
        here = self._kernel.addresses()
        ours = held.get(ADDRESSES_ON_DEVICE, {}).keys()
        moved = bool((here.others ^ self._own) & ours) or bool(self._own - here.others)
        return not here.device or here.ours != ours or moved

    def _rewritten(self, held: Table) -> bool:
        virtuals = held.get(VIRTUALS, {})
        some = list(islice(self._turn, _AT_A_TIME))
        if not some:
            self._turn = iter(list(virtuals))
            some = list(islice(self._turn, _AT_A_TIME))
        asked = [virtual for virtual in some if virtual in virtuals]
        expected: dict[Virtual, dict[Backend, int]] = {virtual: {} for virtual in asked}
        for (virtual, backend), weight in held.get(SERVERS, {}).items() if asked else ():
            if virtual in expected:
                expected[virtual][backend] = weight
        return any(
            self._kernel.scheduling(virtual) != virtuals[virtual]
            or expected[virtual]
            != {each.backend: each.weight for each in self._kernel.servers(virtual)}
            for virtual in asked
        )
