"""Polling: connections that end, and changes by other programs that IPVS does not announce.

The number of virtual services costs one system call. The rest is read in turn, 64 virtual services
at a time, so a small table is read whole each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any

from pyproxy.dataplane.ipvs.draining import Draining
from pyproxy.dataplane.ipvs.kernel import Kernel
from pyproxy.dataplane.ipvs.schema import (
    ADDRESSES_ON_DEVICE,
    SERVERS,
    VIRTUALS,
    ServerKey,
    Table,
    weight_of,
)
from pyproxy.model.address import Address, Backend
from pyproxy.netlink.ipvs import Server, Virtual

DRAIN_TIMEOUT = 3600.0
"""Seconds after which connections to a removed endpoint are ended. Idle ones end earlier, after the
kernel's timeout, 15 minutes by default."""

_AT_A_TIME = 64
"""Virtual services read in one poll."""


class Deadlines:
    """The time until which each draining server may stay; `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[ServerKey, float] = {}
        self._turn: Iterator[Virtual] = iter(())

    def start(self, draining: Draining) -> None:
        """Start the time of servers that drain since this commit; earlier ones keep theirs."""
        latest = self._clock() + DRAIN_TIMEOUT
        # A server that serves again loses its deadline, and later drains for the whole time.
        self._until = {key: self._until.get(key, latest) for key in draining.pairs()}

    def drained(
        self,
        draining: Draining,
        servers: Callable[[Virtual], Sequence[Server]],
        may_block: Callable[[Virtual], bool],
    ) -> set[ServerKey]:
        """Return draining servers that have no connections, or no time left. Raises KernelError.

        A virtual service takes all packets to its port from the node's own programs, and its
        address those of any other machine that has it. So a virtual service that `may_block` waits
        for established connections only, not until the kernel forgets closed ones.
        """
        if not self._until:
            return set()
        found: set[ServerKey] = set()
        for virtual in self._next(draining):
            backends = draining.servers.get(virtual, frozenset[Backend]())
            is_blocking = virtual in draining.virtuals and may_block(virtual)
            busy = {
                each.backend
                for each in servers(virtual)
                if (each.active if is_blocking else each.connections)
            }
            found.update((virtual, backend) for backend in backends - busy)
        now = self._clock()
        return found | {key for key, until in self._until.items() if until <= now}

    def _next(self, draining: Draining) -> list[Virtual]:
        some = list(islice(self._turn, _AT_A_TIME))
        if not some:
            self._turn = iter(list(draining.servers))
            some = list(islice(self._turn, _AT_A_TIME))
        return some


class DriftPoller:
    """Compares the kernel state with the last commit, a part at each poll."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._node_addresses: AbstractSet[Address] = frozenset()
        self._count: int | None = None
        self._turn: Iterator[Virtual] = iter(())
        self._backends: dict[Virtual, list[Backend]] = {}

    def reset(self, node_addresses: AbstractSet[Address]) -> None:
        """Accept the present state as correct, after a commit."""
        self._node_addresses = node_addresses
        # The next poll only counts, because the commit itself has changed the number.
        self._count = None

    def has_drifted(self, held: Table) -> bool:
        """Return whether a difference from `held` is found in this poll. Raises KernelError."""
        return (
            self._count_changed() or self._addresses_changed(held) or self._services_changed(held)
        )

    def _count_changed(self) -> bool:
        count, before = self._kernel.count(), self._count
        self._count = count
        return before not in (None, count)

    def _addresses_changed(self, held: Table) -> bool:
        if not self._kernel.addresses_changed():
            return False
        here = self._kernel.addresses()
        ours = held.get(ADDRESSES_ON_DEVICE, {}).keys()
        # kube-ipvs0 must not have another device's address, and gets it when that device loses it.
        moved = bool((here.others ^ self._node_addresses) & ours) or bool(
            self._node_addresses - here.others
        )
        return not here.device or here.ours != ours or moved

    def _services_changed(self, held: Table) -> bool:
        virtuals = held.get(VIRTUALS, {})
        some = list(islice(self._turn, _AT_A_TIME))
        servers = held.get(SERVERS, {})
        if not some:
            # Copies, because commits change the table between polls. All servers are walked once
            # for many polls.
            self._turn = iter(list(virtuals))
            self._backends = {}
            for virtual, backend in servers:
                self._backends.setdefault(virtual, []).append(backend)
            some = list(islice(self._turn, _AT_A_TIME))
        # A virtual service may have been removed since its turn was planned.
        return any(
            self._kernel.scheduling(virtual) != virtuals[virtual]
            or self._servers_changed(virtual, servers)
            for virtual in some
            if virtual in virtuals
        )

    def _servers_changed(self, virtual: Virtual, held: Mapping[Any, int]) -> bool:
        found = {each.backend: weight_of(each) for each in self._kernel.servers(virtual)}
        if any(held.get((virtual, backend)) != weight for backend, weight in found.items()):
            return True
        # Servers that were added since the turn was planned are looked for in the next one.
        known = self._backends.get(virtual, ())
        return any((virtual, each) in held and each not in found for each in known)
