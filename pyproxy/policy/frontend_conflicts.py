"""Two Services that want the same frontend: the older one has it.

Nothing in the API stops two Services from naming the same external IP and port, and a load
balancer may hand out one address twice. In kube-proxy the order in which it walks a map decides,
anew at each sync. Here the Service that was created first wins, then the one whose name sorts
first, and the others are answered without that frontend, each with a Problem. The outcome depends
on which Services exist, never on the order in which they were seen.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable

import msgspec

from pyproxy.errors import Problem, ProblemReason
from pyproxy.model.address import Family, Protocol, address_text
from pyproxy.model.objects import Kind, ObjectName, Service
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

_FIELDS = {
    Scope.CLUSTER_IP: "spec.clusterIPs",
    Scope.EXTERNAL_IP: "spec.externalIPs",
    Scope.LOAD_BALANCER: "status.loadBalancer.ingress",
    Scope.NODE_PORT: "spec.ports",
}


class Assignment(msgspec.Struct, frozen=True):
    """What a Service may have of its answer, and who else is touched.

    `problems` name the frontends that another Service has. `affected` are the Services to be
    assigned again, in the same transaction: one may win now what it lost, one must yield what
    it had, or one has another rival to name. Granting them again with unchanged answers names
    nobody further.
    """

    routing: ServiceRouting
    problems: tuple[Problem, ...] = ()
    affected: frozenset[ObjectName] = frozenset()


class _Claimant(msgspec.Struct, frozen=True, order=True, gc=False):
    """A Service in the order of precedence; times are RFC 3339 in UTC, and sort as text."""

    created: str
    name: ObjectName


_Entry = tuple[_Claimant, tuple[bytes, ...]]
"""Who claims, and the keys of all that it claims."""

_HEADS = {pair: bytes(pair) for pair in itertools.product(Family, Protocol)}


class FrontendOwners:
    """Which Service has which frontend; every call costs what its own Service costs.

    Each loser is told of the claimant just before it, so that a change in a long queue touches
    one neighbour and not all that wait.
    """

    def __init__(self) -> None:
        self._queues: dict[bytes, tuple[_Claimant, ...]] = {}
        self._entries: dict[ObjectName, _Entry] = {}

    def assign(self, service: Service, routing: ServiceRouting) -> Assignment:
        """Claim all frontends of an answer, in place of what this Service claimed before."""
        name = service.name
        claimant = _Claimant(service.created, name)
        keys = _keys(routing)
        after = (claimant, keys)
        unique = len(keys) == 1 or len(set(keys)) == len(keys)
        before = self._entries.setdefault(name, after)
        if before is after and unique and self._enters_alone(claimant, keys):
            return Assignment(routing)
        also: set[ObjectName] = set()
        if before is after:
            self._enter(claimant, keys, also)
        elif before != after:
            self._entries[name] = after
            self._move(before, after, also)
        if unique and all(self._queues[key][0] == claimant for key in keys):
            return Assignment(routing, affected=frozenset(also))
        return self._part(claimant, routing, frozenset(also))

    def remove(self, name: ObjectName) -> frozenset[ObjectName]:
        """Give back all that a Service claimed; it may be unknown. The others to answer again."""
        also: set[ObjectName] = set()
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._leave(*entry, also)
        return frozenset(also)

    def _enters_alone(self, claimant: _Claimant, keys: tuple[bytes, ...]) -> bool:
        """Enter the queues that nobody is in yet, and tell whether those were all."""
        alone = (claimant,)
        only = True
        for key in keys:
            if self._queues.setdefault(key, alone) is not alone:
                only = False
        return only

    def _move(self, before: _Entry, after: _Entry, also: set[ObjectName]) -> None:
        kept: frozenset[bytes] = frozenset()
        if before[0] == after[0]:
            kept = frozenset(after[1]).intersection(before[1])
        self._leave(before[0], [key for key in before[1] if key not in kept], also)
        self._enter(after[0], [key for key in after[1] if key not in kept], also)

    def _enter(self, claimant: _Claimant, keys: Iterable[bytes], also: set[ObjectName]) -> None:
        alone = (claimant,)
        for key in keys:
            queue = self._queues.setdefault(key, alone)
            if queue is alone:
                continue
            at = bisect_left(queue, claimant)
            if at < len(queue) and queue[at] == claimant:
                continue
            self._queues[key] = (*queue[:at], claimant, *queue[at:])
            if at < len(queue):
                also.add(queue[at].name)

    def _leave(self, claimant: _Claimant, keys: Iterable[bytes], also: set[ObjectName]) -> None:
        for key in keys:
            queue = self._queues.get(key, ())
            at = bisect_left(queue, claimant)
            if at == len(queue) or queue[at] != claimant:
                continue
            if len(queue) == 1:
                del self._queues[key]
                continue
            self._queues[key] = (*queue[:at], *queue[at + 1 :])
            if at + 1 < len(queue):
                also.add(queue[at + 1].name)

    def _part(
        self, claimant: _Claimant, routing: ServiceRouting, affected: frozenset[ObjectName]
    ) -> Assignment:
        problems: list[Problem] = []
        ports: list[PortRouting] = []
        taken: set[bytes] = set()
        for port in routing.ports:
            kept: list[Frontend] = []
            for frontend in port.frontends:
                key = _key(port, frontend)
                queue = self._queues[key]
                if queue[0] == claimant and key not in taken:
                    kept.append(frontend)
                else:
                    rival = queue[max(bisect_left(queue, claimant) - 1, 0)]
                    problems.append(_problem(claimant, rival, port, frontend))
                taken.add(key)
            if len(kept) == len(port.frontends):
                ports.append(port)
            elif kept:
                ports.append(_narrow(port, tuple(kept)))
        assigned = msgspec.structs.replace(routing, ports=tuple(ports))
        return Assignment(assigned, tuple(problems), affected)


def _keys(routing: ServiceRouting) -> tuple[bytes, ...]:
    keys: list[bytes] = []
    for port in routing.ports:
        head = _head(port)
        keys += [head + each.port.to_bytes(2, "big") + each.address for each in port.frontends]
    return tuple(keys)


def _key(port: PortRouting, frontend: Frontend) -> bytes:
    return _head(port) + frontend.port.to_bytes(2, "big") + frontend.address


def _head(port: PortRouting) -> bytes:
    # A node port has no address, so its family must be told; the others' tell it by length.
    return _HEADS[port.family, port.protocol]


def _narrow(port: PortRouting, frontends: tuple[Frontend, ...]) -> PortRouting:
    """Leave a port these frontends, and the backends that they use."""
    uses = {frontend.use for frontend in frontends}
    cluster = port.cluster if uses & {Use.CLUSTER, Use.SPLIT} else ()
    local = port.local if uses & {Use.LOCAL, Use.SPLIT} else ()
    hairpin = tuple(backend for backend in port.hairpin if backend in {*cluster, *local})
    return msgspec.structs.replace(
        port, frontends=frontends, cluster=cluster, local=local, hairpin=hairpin
    )


def _problem(
    claimant: _Claimant, rival: _Claimant, port: PortRouting, frontend: Frontend
) -> Problem:
    what = f"port {frontend.port}/{port.protocol.name}"
    if frontend.address:
        what = f"{address_text(frontend.address)} {what}"
    else:
        what = f"node {what} ({port.family.label})"
    if rival == claimant:
        who = "another port of this Service has it"
    elif rival.created == claimant.created:
        who = f"Service {rival.name}, as old and first by name, claims it too"
    else:
        who = f"Service {rival.name}, which is older, claims it too"
    message = f"{what} is not answered for port {port.name!r}: {who}"
    field, reason = _FIELDS[frontend.scope], ProblemReason.FRONTEND_CONFLICT
    return Problem(Kind.SERVICE.value, str(claimant.name), field, message, reason)
