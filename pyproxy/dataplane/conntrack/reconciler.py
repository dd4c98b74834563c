"""The worker that deletes stale flows after commits; no commit waits for it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol as Interface

from pyproxy.dataplane.conntrack.frontends import FrontendKey, Frontends
from pyproxy.dataplane.conntrack.recheck_queue import RecheckQueue
from pyproxy.dataplane.conntrack.sweep import Sweep, Table
from pyproxy.model.address import Address, Family, Protocol, family_of
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_SWEEP_INTERVAL = 0.1
"""Seconds between the end of a sweep and the next, so that changes in between share one."""

_MOST_KEYS = 1_000
"""Node ports on changed addresses up to which each has a key of its own.

A node may have a route to thousands of addresses of its own, and thousands of node ports."""

_REST = 3.0
"""The time between two sweeps as a multiple of the last one's CPU time.

A sweep of a full table takes seconds, and a UDP Service that changes all the time makes one due at
once. The thread uses a quarter of a CPU at most. On a busy node a sweep mostly waits for a CPU:
that time does not count, or stale flows would stay three times as long again."""


class Observer(Interface):
    """Counts sweeps, for metrics."""

    def conntrack_finished(self, family: Family, seconds: float, deleted: int) -> None:
        """Count one sweep over a family's flows. Called in the worker's thread; must not block."""
        ...


class Reconciler:
    """Deletes the UDP and SCTP flows that commits have made stale.

    The agent's thread calls `changed`, `full` and `node_addresses` after each commit; they do not
    block. A thread of its own (`start`, `stop`) reads and deletes, by `step`. `abandoned` counts
    frontends that are not retried after a failure, because too many others are.
    """

    def __init__(
        self,
        table: Table,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._table = table
        self._observer = observer
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._frontends = Frontends()
        self._node_addresses: frozenset[Address] = frozenset()
        # Those of late, while node ports on them are queued.
        self._lost_addresses: frozenset[Address] = frozenset()
        self._queue = RecheckQueue()
        # Guards the queue and `_stopping`. It is not held during a sweep, so that no commit waits
        # while the kernel lists its table.
        self._wake = threading.Condition()
        self._stopping = False
        # The first sweep does not wait.
        self._not_before = -math.inf
        self._thread = Worker("conntrack", self._run)
        self.abandoned = 0

    def changed(self, services: Mapping[ObjectName, ServiceRouting | None]) -> None:
        """Queue the frontends of Services that were committed just now; None for deleted ones.

        Services that the kernel rejected must be left out, because their old flows are still right.
        """
        with self._wake:
            for name, routing in services.items():
                self._enqueue(self._frontends.replace(name, routing))

    def full(
        self, routings: Iterable[ServiceRouting], rejected: Collection[ObjectName] = ()
    ) -> None:
        """Queue all frontends: flows may be from before this process started.

        The flows of Services that the kernel `rejected` are still right, as their rules are.
        """
        with self._wake:
            # A group's key stands for the frontends that exist; removed ones need their own keys.
            gone = self._frontends.replace_all(routings, rejected)
            self._enqueue(gone | self._frontends.groups())

    def recheck(self) -> None:
        """Queue all frontends, after other programs' writes were undone."""
        with self._wake:
            self._enqueue(self._frontends.groups())

    def node_addresses(self, addresses: Collection[Address]) -> None:
        """Set the addresses that node ports have, and queue node ports on those that changed."""
        with self._wake:
            before, self._node_addresses = self._node_addresses, frozenset(addresses)
            # Lost addresses too: flows to a node port on them must end.
            touched = before ^ self._node_addresses
            if not touched:
                return
            node_ports = self._frontends.node_ports()
            if len(touched) * len(node_ports) > _MOST_KEYS:
                self._lost_addresses = (self._lost_addresses | before) - self._node_addresses
                self._enqueue(node_ports)
                return
            self._enqueue(
                [
                    FrontendKey(key.family, key.protocol, address + key.destination)
                    for key in node_ports
                    for address in touched
                    if family_of(address) is key.family
                ]
            )

    def start(self) -> None:
        """Start the thread, in the network namespace of the caller."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop after the current step, or abandon it after `timeout` seconds; idempotent."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.end(timeout)

    def due(self) -> float | None:
        """Return the time of the next step on the clock; None if no frontend is queued."""
        with self._wake:
            due = self._queue.due()
            return None if due is None else max(due, self._not_before)

    def step(self) -> None:
        """Sweep the frontends that are due. Blocks for the kernel's conntrack table."""
        with self._wake:
            due = self._queue.take(self._clock())
        if not due:
            return
        began = self._cpu_clock()
        try:
            failed = self._sweep(frozenset(due))
        except Exception:
            # A fault of ours: the thread's supervisor logs it, and the frontends stay queued.
            with self._wake:
                self._queue.finish(due, frozenset(due), self._clock())
            raise
        with self._wake:
            now = self._clock()
            rest = _REST * (self._cpu_clock() - began)
            self._not_before = now + max(_SWEEP_INTERVAL, rest)
            given_up = self._queue.finish(due, failed, now)
            if not self._queue:
                self._lost_addresses = frozenset()
        if given_up:
            self.abandoned += len(given_up)
            log.error(
                "cannot delete stale conntrack entries of %d frontends: too many are retried",
                len(given_up),
            )

    def _enqueue(self, keys: Collection[FrontendKey]) -> None:
        # The caller holds `_wake`.
        if keys:
            self._queue.add(keys, self._clock())
            self._wake.notify()

    def _run(self) -> None:
        while self._wait():
            self.step()

    def _wait(self) -> bool:
        """Wait until a frontend is due; return false after `stop`."""
        with self._wake:
            while not self._stopping:
                due = self.due()
                delay = None if due is None else due - self._clock()
                if delay is not None and delay <= 0:
                    return True
                self._wake.wait(delay)
        return False

    def _sweep(self, keys: frozenset[FrontendKey]) -> frozenset[FrontendKey]:
        """Sweep the flows of these frontends; return those with a read or deletion that failed."""
        wanted: dict[Family, dict[Protocol, set[bytes]]] = {}
        for key in keys:
            protocols = wanted.setdefault(key.family, {})
            protocols.setdefault(key.protocol, set()).add(key.destination)
        failed: set[FrontendKey] = set()
        for family, protocols in wanted.items():
            began = self._clock()
            deleted = 0
            for protocol, destinations in protocols.items():
                # Read without the lock: a commit meanwhile replaces values and queues a sweep.
                targets = self._frontends.targets(family, protocol)
                sweep = Sweep(
                    self._table,
                    family,
                    protocol,
                    targets,
                    self._node_addresses,
                    self._lost_addresses,
                )
                result = sweep.run(destinations)
                deleted += result.deleted
                failed |= {FrontendKey(family, protocol, each) for each in result.failed}
                for error in result.errors:
                    log.warning(
                        "cannot delete stale conntrack entries of %s %s: %s",
                        family.label,
                        protocol.name,
                        error,
                    )
            self._observer.conntrack_finished(family, self._clock() - began, deleted)
        return frozenset(failed)
