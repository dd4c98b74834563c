"""Services that are programmed in parts, because they have more rows than a step.

A part has one frontend and its endpoints, and changes in one transaction. A frontend that moves
from one Service to another does so in one transaction too. A Service stays divided until it is
deleted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping

import msgspec

from pyproxy.model.objects import ObjectName
from pyproxy.policy.claims import key_of
from pyproxy.policy.parts import PartName, parts, row_count, service_of
from pyproxy.policy.routing import ServiceRouting

Written = dict[ObjectName, ServiceRouting | None]
"""The routings of Services and of parts that a step writes; None for those that are gone."""


class _Divided(msgspec.Struct):
    """One divided Service.

    `whole` is its routing as it was programmed before it was divided, as long as that is the case.
    `waiting` are the frontends whose part differs from its target.
    """

    programmed: dict[bytes, ServiceRouting]
    whole: ServiceRouting | None = None
    routing: ServiceRouting | None = None
    target: dict[bytes, ServiceRouting] = msgspec.field(default_factory=dict)
    waiting: OrderedDict[bytes, None] = msgspec.field(default_factory=OrderedDict)

    @property
    def is_done(self) -> bool:
        return not self.waiting and self.whole is None


class DividedServices:
    """The divided Services, and the order in which their parts are written."""

    def __init__(self) -> None:
        self._services: dict[ObjectName, _Divided] = {}
        # Services take turns; each step begins with the one that has waited longest.
        self._unfinished: OrderedDict[ObjectName, None] = OrderedDict()
        # A frontend that moves has two Services.
        self._waiting: dict[bytes, list[ObjectName]] = {}

    def __bool__(self) -> bool:
        return bool(self._services)

    def __contains__(self, name: ObjectName) -> bool:
        return name in self._services

    @property
    def is_unfinished(self) -> bool:
        """Whether any part differs from its target."""
        return bool(self._unfinished)

    def replace(
        self, name: ObjectName, routing: ServiceRouting | None, whole: ServiceRouting | None
    ) -> None:
        """Set what a Service should be; `whole` is its programmed routing if it is not divided."""
        service = self._services.get(name)
        if service is None:
            # Divided as it is programmed: no row changes by that.
            service = self._services[name] = _Divided(parts(whole), whole)
        self._forget_waiting(name, service)
        service.routing, service.target = routing, parts(routing)
        before, after = service.programmed, service.target
        service.waiting = OrderedDict.fromkeys(
            key for key in (before | after) if before.get(key) != after.get(key)
        )
        for key in service.waiting:
            self._waiting.setdefault(key, []).append(name)
        self._unfinished.setdefault(name)

    def take(self, rows: int) -> Written:
        """Return parts to write, of about `rows` rows: those of the Service that waits longest."""
        written: Written = {}
        for name in list(self._unfinished):
            self._unfinished.move_to_end(name)
            service = self._services[name]
            rows -= self._convert(name, written)
            while service.waiting and rows > 0:
                rows -= self._write(next(iter(service.waiting)), written)
            if rows <= 0:
                break
        return written

    def take_moving(self, routings: Iterable[ServiceRouting]) -> Written:
        """Return the waiting parts of frontends that other Services gain or lose now.

        In another transaction, a packet would find both owners of the frontend or none.
        """
        written: Written = {}
        if self._waiting:
            for routing in routings:
                for port in routing.ports:
                    for frontend in port.frontends:
                        key = key_of(port, frontend)
                        if key in self._waiting:
                            self._write(key, written)
        return written

    def restore(self, names: Collection[ObjectName]) -> None:
        """Have the parts of a failed step wait again; `names` are all that it was to write."""
        for name in {service_of(each) for each in names} & self._services.keys():
            service = self._services[name]
            self.replace(name, service.routing, service.whole)

    def committed(
        self, written: Mapping[ObjectName, ServiceRouting | None], rejected: Collection[ObjectName]
    ) -> dict[ObjectName, ServiceRouting | None]:
        """Record parts that the kernel took; return the routings of the Services that are done.

        A part in `rejected` stays as it was until its Service changes.
        """
        if not self._services:
            return {}
        for name, routing in written.items():
            if name in rejected:
                continue
            if not isinstance(name, PartName):
                if name in self._services:
                    self._services[name].whole = None
            elif routing is None:
                self._services[name.service].programmed.pop(name.frontend, None)
            else:
                self._services[name.service].programmed[name.frontend] = routing
        done: dict[ObjectName, ServiceRouting | None] = {}
        for name in [name for name in self._unfinished if self._services[name].is_done]:
            del self._unfinished[name]
            service = self._services[name]
            done[name] = service.routing
            service.target = {}
            if not service.programmed:
                del self._services[name]
        return done

    def _convert(self, name: ObjectName, written: Written) -> int:
        """Add a Service's parts as they are programmed; return the rows that this compares."""
        service = self._services[name]
        if service.whole is None or name in written:
            return 0
        written[name] = None
        for part in service.programmed.values():
            written.setdefault(part.name, part)
        return row_count(service.whole)

    def _write(self, key: bytes, written: Written) -> int:
        """Add the parts of one frontend; return their rows, before and after."""
        rows = 0
        for name in self._waiting.pop(key):
            service = self._services[name]
            self._convert(name, written)
            del service.waiting[key]
            before, after = service.programmed.get(key), service.target.get(key)
            written[PartName(name.namespace, name.name, key)] = after
            rows += row_count(before) + row_count(after)
        return rows

    def _forget_waiting(self, name: ObjectName, service: _Divided) -> None:
        for key in service.waiting:
            names = self._waiting[key]
            names.remove(name)
            if not names:
                del self._waiting[key]
