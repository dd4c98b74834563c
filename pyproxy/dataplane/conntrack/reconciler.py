"""The worker that removes stale flows after commits, without any commit waiting for it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol as Interface

from pyproxy.dataplane.conntrack.frontends import Frontends, Key
from pyproxy.dataplane.conntrack.look import Look, Table
from pyproxy.dataplane.conntrack.recheck_queue import RecheckQueue
from pyproxy.model.address import Address, Family, Protocol, family_of
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import ServiceRouting
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_PACE = 0.1
"""Seconds from one look's end to the next one's start: changes in between go together."""


class Observer(Interface):
    """Whoever counts what the reconciler does."""

    def conntrack_finished(self, family: Family, seconds: float, deleted: int) -> None:
        """One look at the flows of a family is over."""
        ...


class Reconciler:
    """Follows what was committed and removes the UDP and SCTP flows that it made stale.

    `changed`, `full` and `node_addresses` are for the agent's thread, after each successful commit;
    they only take note. A thread of its own (`start`, `stop`) does the looking and deleting, by
    `step`. `abandoned` counts frontends given up after the last retry.
    """

    def __init__(
        self, table: Table, observer: Observer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._table = table
        self._observer = observer
        self._clock = clock
        self._frontends = Frontends()
        self._node_addresses: frozenset[Address] = frozenset()
        self._agenda = RecheckQueue()
        self._wake = threading.Condition()
        self._stopping = False
        self._rested = -math.inf
        self._thread = Worker("conntrack", self._run)
        self.abandoned = 0

    def changed(self, services: Mapping[ObjectName, ServiceRouting | None]) -> None:
        """Take note of Services as they were committed just now; None stands for one that is gone.

        What the kernel would not take must be left out: its old flows are still right.
        """
        with self._wake:
            for name, routing in services.items():
                self._note(self._frontends.replace(name, routing))

    def full(self, routings: Iterable[ServiceRouting]) -> None:
        """Take note of all Services, and look at all flows: they may be from before this start."""
        with self._wake:
            gone = self._frontends.replace_all(routings)
            self._note(gone | self._frontends.groups())

    def node_addresses(self, addresses: Collection[Address]) -> None:
        """Say on which addresses node ports answer; where on all local ones, name all of them."""
        with self._wake:
            before, self._node_addresses = self._node_addresses, frozenset(addresses)
            touched = before ^ self._node_addresses
            self._note(
                [
                    Key(key.family, key.protocol, address + key.destination)
                    for key in self._frontends.node_ports()
                    for address in touched
                    if family_of(address) is key.family
                ]
            )

    def start(self) -> None:
        """Begin to work, in the network namespace of the caller."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """End after the piece of work at hand, or leave it behind after so many seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.end(timeout)

    def step(self) -> None:
        """Do all that is due by now."""
        with self._wake:
            visits = self._agenda.take(self._clock())
        if not visits:
            return
        try:
            failed = self._look(frozenset(visits))
        except Exception:
            # A mistake of ours, for whoever runs this thread; the frontends must not be forgotten.
            with self._wake:
                self._agenda.looked(visits, frozenset(visits), self._clock())
            raise
        with self._wake:
            self._rested = self._clock()
            given_up = self._agenda.looked(visits, failed, self._rested)
        if given_up:
            self.abandoned += len(given_up)
            log.error(
                "stale conntrack entries of %d frontends stay: no retry is left", len(given_up)
            )

    def _note(self, keys: Collection[Key]) -> None:
        if keys:
            self._agenda.add(keys, self._clock())
            self._wake.notify()

    def _run(self) -> None:
        while self._wait():
            self.step()

    def _wait(self) -> bool:
        """Wait until something is due; false when it is time to end."""
        with self._wake:
            while not self._stopping:
                due = self._agenda.due()
                delay = None if due is None else max(due, self._rested + _PACE) - self._clock()
                if delay is not None and delay <= 0:
                    return True
                self._wake.wait(delay)
        return False

    def _look(self, keys: frozenset[Key]) -> frozenset[Key]:
        """Look at these frontends' flows; those with one that could not be read or removed."""
        wanted: dict[Family, dict[Protocol, set[bytes]]] = {}
        for key in keys:
            protocols = wanted.setdefault(key.family, {})
            protocols.setdefault(key.protocol, set()).add(key.destination)
        failed: set[Key] = set()
        for family, protocols in wanted.items():
            began = self._clock()
            deleted = 0
            for protocol, destinations in protocols.items():
                claims = self._frontends.claims(family, protocol)
                look = Look(self._table, family, protocol, claims, self._node_addresses)
                found = look.run(destinations)
                deleted += found.deleted
                failed |= {Key(family, protocol, destination) for destination in found.failed}
                for error in found.errors:
                    log.warning("conntrack entries, %s %s: %s", family.label, protocol.name, error)
            self._observer.conntrack_finished(family, self._clock() - began, deleted)
        return frozenset(failed)
