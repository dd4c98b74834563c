"""Resolve conflicts between Services that claim the same frontend: the older one gets it.

The API lets two Services name the same external IP and port, and a load balancer may assign one
address twice. kube-proxy lets the random order of a map decide, anew in each sync. Here the Service
that was created first gets the frontend, then the one whose name sorts first. Each other Service is
routed without that frontend and has a Problem. The result depends on the existing Services alone,
not on the order of events.
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
    """The routing of a Service without the frontends of others, and the Services it affects.

    `problems` name the frontends that another Service has. `affected` are the Services to assign
    again in the same transaction: they may get a frontend, lose one, or have another owner to name.
    Assigning them again with unchanged routings affects no further Service.
    """

    routing: ServiceRouting
    problems: tuple[Problem, ...] = ()
    affected: frozenset[ObjectName] = frozenset()


class _Claimant(msgspec.Struct, frozen=True, order=True, gc=False):
    """A Service in the order of precedence; times are RFC 3339 in UTC, so they sort as text."""

    created: str
    name: ObjectName


_Claims = tuple[_Claimant, tuple[bytes, ...]]
"""A Service and the keys of all frontends that it claims."""

# One byte each for the IP version (4, 6) and the protocol number (6, 17, 132).
_KEY_PREFIXES = {pair: bytes(pair) for pair in itertools.product(Family, Protocol)}


class FrontendOwners:
    """The owner of each frontend. A call costs time in proportion to its Service alone.

    For each frontend there is a queue of its claimants, oldest first; the first one owns it. The
    Problem of a claimant names the one before it in the queue, so a change affects one neighbour
    and not the whole queue.
    """

    def __init__(self) -> None:
        self._queues: dict[bytes, tuple[_Claimant, ...]] = {}
        self._claims: dict[ObjectName, _Claims] = {}

    def assign(self, service: Service, routing: ServiceRouting) -> Assignment:
        """Replace the claims of a Service by all frontends of a routing."""
        name = service.name
        claimant = _Claimant(service.created, name)
        keys = _keys(routing)
        after = (claimant, keys)
        unique = len(keys) == 1 or len(set(keys)) == len(keys)
        before = self._claims.setdefault(name, after)
        # The first sync adds every Service once, mostly without conflict: no other work for those.
        if before is after and unique and self._add_unclaimed(claimant, keys):
            return Assignment(routing)
        affected: set[ObjectName] = set()
        if before is after:
            self._add(claimant, keys, affected)
        elif before != after:
            self._claims[name] = after
            self._replace(before, after, affected)
        if unique and all(self._queues[key][0] == claimant for key in keys):
            return Assignment(routing, affected=frozenset(affected))
        return self._without_conflicts(claimant, routing, frozenset(affected))

    def remove(self, name: ObjectName) -> frozenset[ObjectName]:
        """Remove the claims of a Service, known or not; return the Services to assign again."""
        affected: set[ObjectName] = set()
        claims = self._claims.pop(name, None)
        if claims is not None:
            self._discard(*claims, affected)
        return frozenset(affected)

    def _add_unclaimed(self, claimant: _Claimant, keys: tuple[bytes, ...]) -> bool:
        """Add a claimant to the keys without a queue; return whether these were all."""
        # One tuple for all keys: nearly every queue has one claimant, and no queue is mutated.
        alone = (claimant,)
        all_unclaimed = True
        for key in keys:
            if self._queues.setdefault(key, alone) is not alone:
                all_unclaimed = False
        return all_unclaimed

    def _replace(self, before: _Claims, after: _Claims, affected: set[ObjectName]) -> None:
        kept: frozenset[bytes] = frozenset()
        # A Service that was deleted and made again in one sync has another place in every queue.
        if before[0] == after[0]:
            kept = frozenset(after[1]).intersection(before[1])
        self._discard(before[0], [key for key in before[1] if key not in kept], affected)
        self._add(after[0], [key for key in after[1] if key not in kept], affected)

    def _add(self, claimant: _Claimant, keys: Iterable[bytes], affected: set[ObjectName]) -> None:
        alone = (claimant,)
        for key in keys:
            queue = self._queues.setdefault(key, alone)
            if queue is alone:
                continue
            at = bisect_left(queue, claimant)
            # Added by `_add_unclaimed`, or the frontend of two ports of the Service.
            if at < len(queue) and queue[at] == claimant:
                continue
            self._queues[key] = (*queue[:at], claimant, *queue[at:])
            # Only the next claimant names this one in its Problem, or loses the frontend to it.
            if at < len(queue):
                affected.add(queue[at].name)

    def _discard(
        self, claimant: _Claimant, keys: Iterable[bytes], affected: set[ObjectName]
    ) -> None:
        for key in keys:
            queue = self._queues.get(key, ())
            at = bisect_left(queue, claimant)
            if at == len(queue) or queue[at] != claimant:
                continue
            if len(queue) == 1:
                del self._queues[key]
                continue
            self._queues[key] = (*queue[:at], *queue[at + 1 :])
            # The next claimant gets the frontend, or has another owner to name.
            if at + 1 < len(queue):
                affected.add(queue[at + 1].name)

    def _without_conflicts(
        self, claimant: _Claimant, routing: ServiceRouting, affected: frozenset[ObjectName]
    ) -> Assignment:
        """Leave out the frontends of other Services, and duplicates within this one."""
        problems: list[Problem] = []
        ports: list[PortRouting] = []
        seen: set[bytes] = set()
        for port in routing.ports:
            kept: list[Frontend] = []
            for frontend in port.frontends:
                key = _key(port, frontend)
                queue = self._queues[key]
                if queue[0] == claimant and key not in seen:
                    kept.append(frontend)
                else:
                    # The claimant before this one. At the front it is this one itself, because the
                    # Service has the frontend twice.
                    rival = queue[max(bisect_left(queue, claimant) - 1, 0)]
                    problems.append(_problem(claimant, rival, port, frontend))
                seen.add(key)
            if len(kept) == len(port.frontends):
                ports.append(port)
            elif kept:
                ports.append(_with_frontends(port, tuple(kept)))
        return Assignment(
            msgspec.structs.replace(routing, ports=tuple(ports)), tuple(problems), affected
        )


def _keys(routing: ServiceRouting) -> tuple[bytes, ...]:
    keys: list[bytes] = []
    for port in routing.ports:
        prefix = _key_prefix(port)
        keys += [prefix + each.port.to_bytes(2, "big") + each.address for each in port.frontends]
    return tuple(keys)


def _key(port: PortRouting, frontend: Frontend) -> bytes:
    return _key_prefix(port) + frontend.port.to_bytes(2, "big") + frontend.address


def _key_prefix(port: PortRouting) -> bytes:
    # An unexpanded node port has no address whose length would show the family.
    return _KEY_PREFIXES[port.family, port.protocol]


def _with_frontends(port: PortRouting, frontends: tuple[Frontend, ...]) -> PortRouting:
    """Return a port with these frontends only, and the endpoints that they use."""
    uses = {frontend.use for frontend in frontends}
    cluster = port.cluster if uses & {Use.CLUSTER, Use.SPLIT} else ()
    local = port.local if uses & {Use.LOCAL, Use.SPLIT} else ()
    used = {*cluster, *local}
    hairpin = tuple(backend for backend in port.hairpin if backend in used)
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
        owner = "another port of this Service has it"
    elif rival.created == claimant.created:
        owner = f"Service {rival.name}, as old and first by name, claims it too"
    else:
        owner = f"Service {rival.name}, which is older, claims it too"
    message = f"{what} is not proxied for port {port.name!r}: {owner}"
    field, reason = _FIELDS[frontend.scope], ProblemReason.FRONTEND_CONFLICT
    return Problem(Kind.SERVICE.value, str(claimant.name), field, message, reason)
