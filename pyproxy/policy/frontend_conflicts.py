"""Resolve conflicts between Services that claim the same frontend.

The API lets two Services name the same external IP and port. It also lets a Service name the
cluster IP of another as its external IP. kube-proxy lets the random order of a map decide, anew in
each sync. Here the kind of the claim decides (`claims.Precedence`), then the age of the Service,
then its name. A cluster IP belongs to its Service with all ports. Each other Service is routed
without the frontend and has a Problem. The result depends on the existing Services alone, not on
the order of events.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable

import msgspec

from pyproxy.errors import Problem, ProblemReason
from pyproxy.model.address import Address, Backend, address_text
from pyproxy.model.objects import Kind, ObjectName, Service
from pyproxy.policy.claims import (
    Claimant,
    Claims,
    ClusterClaim,
    Precedence,
    claim_key_of,
    claims_of,
    key_of,
    node_port_key,
    precedence_of,
)
from pyproxy.policy.routing import FIELDS, Frontend, PortRouting, ServiceRouting, with_frontends

_NAMES = {
    Precedence.HEALTH_CHECK: "the health-check node port",
    Precedence.NODE_PORT: "a node port",
    Precedence.LOAD_BALANCER: "a load balancer address",
    Precedence.API_SERVER: "an API server's endpoint",
    Precedence.EXTERNAL_IP: "an external IP",
}
_PLURALS = {
    Precedence.NODE_PORT: "node ports",
    Precedence.LOAD_BALANCER: "load balancer addresses",
    Precedence.EXTERNAL_IP: "external IPs",
}
_ON_ANY_ADDRESS = (Precedence.LOAD_BALANCER, Precedence.EXTERNAL_IP)


class Affected(msgspec.Struct, frozen=True, gc=False):
    """The Services to assign again after a change, with unchanged routings.

    Those in `now` belong into the same transaction: they may get a frontend, lose one, or have
    another owner to name. Those in `later` gain or lose a frontend that the changed Service does
    not have, because their address is or was its cluster IP. Their number has no bound, and any
    later transaction may assign them. Assigning any of them affects no further Service.
    """

    now: frozenset[ObjectName] = frozenset()
    later: frozenset[ObjectName] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.now or self.later)

    def __or__(self, other: Affected) -> Affected:
        return Affected(self.now | other.now, self.later | other.later)


_NONE = Affected()
_UNKNOWN: frozenset[ObjectName] = frozenset()


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """The routing of a Service without the frontends of others, and the Services it affects.

    `problems` name the frontends that another Service has.
    """

    routing: ServiceRouting
    problems: tuple[Problem, ...] = ()
    affected: Affected = _NONE


class FrontendOwners:
    """The owner of each frontend. A call costs time in proportion to its Service alone.

    For each frontend there is a queue of its claimants, strongest first; the first one owns it. The
    Problem of a claimant names the one before it in the queue, so a change affects one neighbour
    and not the whole queue. A node port has one queue for all addresses of the node. Its owner
    precedes the first claimant of that port at each of these addresses.
    """

    def __init__(self) -> None:
        self._frontends = _Queues()
        self._cluster_ips = _Queues()
        self._claims: dict[ObjectName, Claims | ClusterClaim] = {}
        self._by_address: dict[Address, set[ObjectName]] = {}
        # The claimed keys on addresses of the node, by that of the node port, with their claimants'
        # number.
        self._on_node: dict[bytes, dict[bytes, int]] = {}

    def at(self, addresses: Iterable[Address]) -> frozenset[ObjectName]:
        """Return the Services that claim load balancer addresses or external IPs among these."""
        found = (self._by_address.get(address, _UNKNOWN) for address in addresses)
        return frozenset[ObjectName]().union(*found)

    def assign_alone(self, claim: ClusterClaim) -> bool:
        """Return whether a Service has its only frontend and cluster IP without any rival.

        Its claims are then recorded, and the caller keeps its routing as it is. Otherwise nothing
        has changed, and `assign` decides.
        """
        claimant, key, address = claim.claimant, claim.key, claim.address
        name = claimant.name
        before = self._claims.setdefault(name, claim)
        if before is not claim:
            # No other kind of claim precedes that of a cluster IP.
            return before == claim and self._cluster_ips.has_only(address, claimant)
        # Others lose an external IP or a load balancer address that is now a cluster IP.
        if address not in self._by_address and self._frontends.add_first(key, claimant):
            if self._cluster_ips.add_first(address, claimant):
                return True
            self._frontends.discard(claimant, (key,), [])
        del self._claims[name]
        return False

    def assign(
        self,
        service: Service,
        routing: ServiceRouting,
        *,
        node_addresses: Collection[Address] = (),
        api_servers: Collection[Backend] = (),
    ) -> Assignment:
        """Replace the claims of a Service by all frontends of a routing.

        The node listens for health-check node ports on `node_addresses`. `api_servers` are the API
        server's endpoints if this is its Service.
        """
        after = claims_of(service, routing, node_addresses, api_servers)
        before = self._claims.setdefault(service.name, after)
        if isinstance(before, ClusterClaim):
            before = before.claims()
        affected = _NONE
        if before is after:
            affected, unclaimed = self._add(after)
            # The first sync adds every Service once, mostly without conflict.
            if unclaimed and after.unique and not after.addresses:
                return Assignment(routing, (), affected)
        elif before != after:
            self._claims[service.name] = after
            affected = self._discard(before.without(after)) | self._add(after.without(before))[0]
        if after.unique and not after.on_node and self._owns_all(after):
            return Assignment(routing, (), affected)
        return self._without_conflicts(after, routing, affected)

    def remove(self, name: ObjectName) -> Affected:
        """Remove the claims of a Service, known or not; return the Services to assign again."""
        claims = self._claims.pop(name, None)
        if isinstance(claims, ClusterClaim):
            claims = claims.claims()
        return _NONE if claims is None else self._discard(claims)

    def _owns_all(self, claims: Claims) -> bool:
        # Most Services have cluster IPs only, which only another Service's cluster IP can oppose.
        if any(self._cluster_ips.first(address) for address in claims.addresses):
            return False
        return all(self._frontends.is_first(claimant, keys) for claimant, keys in claims.keys)

    def _add(self, claims: Claims) -> tuple[Affected, bool]:
        """Add claims; return the affected Services, and whether it has all keys alone."""
        now: list[Claimant] = []
        later = _UNKNOWN
        unclaimed = True
        for claimant, keys in claims.keys:
            unclaimed &= self._frontends.add(claimant, keys, now)
            if self._on_node:
                self._append_preceded(claimant, keys, now)
        if claims.cluster_ips:
            holder = claims.keys[0][0]  # `claims.holder` would be a call
            self._cluster_ips.add(holder, claims.cluster_ips, [])
            if self._by_address:
                for address in claims.cluster_ips:
                    # A second Service with one cluster IP takes nothing more from the others.
                    if self._cluster_ips.first(address) == holder:
                        later = later.union(self._by_address.get(address, _UNKNOWN))
        if claims.addresses or claims.on_node:
            self._add_others(claims, now)
        return _affected(now, later, claims.name) if now or later else _NONE, unclaimed

    def _add_others(self, claims: Claims, now: list[Claimant]) -> None:
        """Add the claims to addresses that may be another Service's or the node's."""
        for key in claims.on_node:
            counts = self._on_node.setdefault(node_port_key(key), {})
            counts[key] = counts.get(key, 0) + 1
            self._append_node_port(key, now)
        for address in claims.addresses:
            self._by_address.setdefault(address, set()).add(claims.name)

    def _discard(self, claims: Claims) -> Affected:
        now: list[Claimant] = []
        for claimant, keys in claims.keys:
            if self._on_node:
                self._append_preceded(claimant, keys, now)
            self._frontends.discard(claimant, keys, now)
        for key in claims.on_node:
            node_port = node_port_key(key)
            counts = self._on_node[node_port]
            counts[key] -= 1
            if not counts[key]:
                del counts[key]
                if not counts:
                    del self._on_node[node_port]
            self._append_node_port(key, now)
        later = _UNKNOWN
        for address in claims.cluster_ips:
            if self._cluster_ips.first(address) == claims.holder:
                later = later.union(self._by_address.get(address, _UNKNOWN))
            self._cluster_ips.discard(claims.holder, (address,), [])
        for address in claims.addresses:
            names = self._by_address[address]
            names.discard(claims.name)
            if not names:
                del self._by_address[address]
        return _affected(now, later, claims.name)

    def _append_preceded(
        self, claimant: Claimant, keys: Iterable[bytes], now: list[Claimant]
    ) -> None:
        """Append the first claimants that a node port precedes, if it is the first of its queue."""
        if claimant.precedence > Precedence.NODE_PORT:
            return
        for key in keys:
            if key in self._on_node and self._frontends.first(key) == claimant:
                now += filter(None, map(self._frontends.first, self._on_node[key]))

    def _append_node_port(self, key: bytes, now: list[Claimant]) -> None:
        """Append the owner of a node port, from or to which a frontend moves."""
        owner = self._frontends.first(node_port_key(key))
        if owner is not None:
            now.append(owner)

    def _without_conflicts(
        self, claims: Claims, routing: ServiceRouting, affected: Affected
    ) -> Assignment:
        """Leave out the frontends of other Services, and duplicates within this one."""
        problems: list[Problem] = []
        ports: list[PortRouting] = []
        seen: set[bytes] = set()
        # The first of several ports with one node port has it.
        node_ports = _node_ports(routing) if claims.on_node else {}
        for port in routing.ports:
            kept: list[Frontend] = []
            for frontend in port.frontends:
                key = key_of(port, frontend)
                rival = self._rival(claims, claim_key_of(port, frontend), frontend)
                is_taken = key in seen or (
                    key in claims.on_node and node_ports.get(node_port_key(key), port) is not port
                )
                if rival is None and not is_taken:
                    kept.append(frontend)
                    seen.add(key)
                else:
                    problems.append(_problem(claims, rival, port, frontend))
            if len(kept) == len(port.frontends):
                ports.append(port)
            elif kept:
                ports.append(with_frontends(port, tuple(kept)))
        return Assignment(
            msgspec.structs.replace(routing, ports=tuple(ports)), tuple(problems), affected
        )

    def _rival(self, claims: Claims, key: bytes, frontend: Frontend) -> Claimant | None:
        """Return the claimant to which a frontend is lost, None if its Service has it."""
        precedence = precedence_of(frontend)
        if precedence in _ON_ANY_ADDRESS:
            holder = self._cluster_ips.first(frontend.address)
            if holder is not None and holder.name != claims.name:
                return holder
        owner = self._frontends.first(node_port_key(key)) if key in claims.on_node else None
        is_own = (
            owner is not None
            and owner.name == claims.name
            and owner.precedence == Precedence.NODE_PORT
        )
        for claimant, _ in claims.keys:
            before = self._frontends.before(key, claimant)
            if before is None:
                continue
            # The Service itself may have the frontend as one of another kind.
            # The others in this queue lose to its own node port.
            if claimant.precedence != precedence or (before != claimant and not is_own):
                return before
            break
        return None if is_own else owner


class _Queues:
    """Queues of claimants, strongest first.

    Nearly every queue has one claimant, and is that claimant itself. A longer one is a list, so
    that each of 10,000 claims costs a search and no copy.
    """

    def __init__(self) -> None:
        self._queues: dict[bytes, Claimant | list[Claimant]] = {}

    def first(self, key: bytes) -> Claimant | None:
        """Return the strongest claimant of a key, None without any."""
        queue = self._queues.get(key)
        return queue[0] if isinstance(queue, list) else queue

    def is_first(self, claimant: Claimant, keys: Iterable[bytes]) -> bool:
        """Return whether a claimant is the strongest one of all these keys, which it claims."""
        return all(self.first(key) == claimant for key in keys)

    def has_only(self, key: bytes, claimant: Claimant) -> bool:
        """Return whether no other claimant has a key, and this one does."""
        return self._queues.get(key) == claimant

    def before(self, key: bytes, claimant: Claimant) -> Claimant | None:
        """Return the next stronger claimant of a key, or this one if it is the strongest.

        None if it does not claim the key.
        """
        queue = self._queues[key]
        if not isinstance(queue, list):
            return queue if queue == claimant else None
        at = bisect_left(queue, claimant)
        return queue[max(at - 1, 0)] if at < len(queue) and queue[at] == claimant else None

    def add_first(self, key: bytes, claimant: Claimant) -> bool:
        """Add a claimant to the queue of a key without claimants; return False if it has some."""
        return self._queues.setdefault(key, claimant) is claimant

    def add(self, claimant: Claimant, keys: Iterable[bytes], behind: list[Claimant]) -> bool:
        """Add a claimant to the queues of keys; append the claimants directly behind it.

        Return whether it is alone in all of them.
        """
        queues = self._queues
        is_alone = True
        for key in keys:
            queue = queues.setdefault(key, claimant)
            if queue is claimant:
                continue
            is_alone = False
            if not isinstance(queue, list):
                queues[key] = queue = [queue]
            at = bisect_left(queue, claimant)
            # Only the next claimant names this one in its Problem, or loses the frontend to it.
            if at < len(queue):
                behind.append(queue[at])
            queue.insert(at, claimant)
        return is_alone

    def discard(self, claimant: Claimant, keys: Iterable[bytes], behind: list[Claimant]) -> None:
        """Remove a claimant from the queues of keys; append the claimants directly behind it."""
        for key in keys:
            queue = self._queues[key]
            if not isinstance(queue, list) or len(queue) == 1:
                del self._queues[key]
                continue
            at = bisect_left(queue, claimant)
            del queue[at]
            # The next claimant gets the frontend, or has another owner to name.
            if at < len(queue):
                behind.append(queue[at])


def _node_ports(routing: ServiceRouting) -> dict[bytes, PortRouting]:
    """Return the port of the Service that has each node port, by the node port's key."""
    found: dict[bytes, PortRouting] = {}
    for port in routing.ports:
        for frontend in port.frontends:
            if precedence_of(frontend) == Precedence.NODE_PORT:
                found.setdefault(claim_key_of(port, frontend), port)
    return found


def _affected(now: Iterable[Claimant], later: frozenset[ObjectName], by: ObjectName) -> Affected:
    if not (now or later):
        return _NONE
    names = {claimant.name for claimant in now}
    # Its own node port may precede its external IP.
    names.discard(by)
    return Affected(frozenset(names), later)


def _problem(
    claims: Claims, rival: Claimant | None, port: PortRouting, frontend: Frontend
) -> Problem:
    what = f"port {frontend.port}/{port.protocol.name}"
    if frontend.address:
        what = f"{address_text(frontend.address)} {what}"
    else:
        what = f"node {what} ({port.family.label})"
    message = f"{what} is not proxied for port {port.name!r}: {_reason(claims, rival, frontend)}"
    field, reason = FIELDS[frontend.scope], ProblemReason.FRONTEND_CONFLICT
    return Problem(Kind.SERVICE.value, str(claims.name), field, message, reason)


def _reason(claims: Claims, rival: Claimant | None, frontend: Frontend) -> str:
    if rival is None or rival.name == claims.name:
        if rival is not None and rival.precedence == Precedence.HEALTH_CHECK:
            return "it is the health-check node port of this Service"
        return "another port of this Service has it"
    precedence = precedence_of(frontend)
    if rival.precedence == precedence:
        if rival.created == claims.keys[0][0].created:
            return f"Service {rival.name}, as old and first by name, claims it too"
        return f"Service {rival.name}, which is older, claims it too"
    if rival.precedence == Precedence.CLUSTER_IP:
        return f"the address is a cluster IP of Service {rival.name}, which has all of its ports"
    name = _NAMES[Precedence(rival.precedence)]
    return (
        f"it is {name} of Service {rival.name}, which precedes {_PLURALS[Precedence(precedence)]}"
    )
