"""Learned affinities that must be deleted, because their endpoint no longer serves that client.

The kernel keeps a learned affinity until its timeout, and each use restarts the timeout. An
affinity to a removed endpoint would therefore hold its client there for as long as it tries.
Packets to a removed endpoint are not learned once AFFINITY_ENDPOINTS lacks it. One packet may pass
that lookup just before the commit and be learned just after: the map is searched again later.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping

import msgspec

from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import FRONTEND, Rows, Table
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.schema import (
    AFFINITY,
    AFFINITY_FRESH,
    AFFINITY_LIMITS,
    NODE_PORT_AFFINITY_LIMITS,
    NODE_PORT_KEY,
    node_port_owner,
    owner_key,
)
from pyproxy.model.address import Address, Backend, Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Tag
from pyproxy.policy.routing import Frontend, PortRouting, ServiceRouting, Use


class Allowed(msgspec.Struct, frozen=True):
    """A frontend's use, the endpoints that its clients may return to, and the chain that learns."""

    use: Use
    backends: frozenset[Backend]
    learning: str = ""


Expectations = dict[bytes, Allowed]
"""The endpoints that clients may return to, by `owner_key`."""

_NONE: frozenset[Backend] = frozenset()
_MARK_SIZE = 4
_IPV4_FRONTEND = sum(field.size(Family.IPV4) for field in FRONTEND)


def expectations(routings: Iterable[ServiceRouting]) -> Expectations:
    """Return the endpoints that clients of these Services' affinity frontends may return to."""
    result: Expectations = {}
    for routing in routings:
        if not routing.affinity_timeout:
            continue
        learning = learning_chains(routing)
        for port in routing.ports:
            for frontend in port.frontends:
                key = frontend_key(frontend.address, port.protocol, frontend.port)
                learns = learning[port.family]
                if not frontend.address:
                    key, learns = owner_key(key, port.family), chains.for_node_port(learns)
                result[key] = _allowed(port, frontend, learns)
    return result


def learning_chains(routing: ServiceRouting) -> Mapping[Family, str]:
    """Return the chain of each family that learns a Service's clients; empty without affinity."""
    if not routing.affinity_timeout:
        return {}
    counts: dict[Family, int] = {}
    for port in routing.ports:
        counts[port.family] = counts.get(port.family, 0) + len(port.frontends)
    # A part of a Service has one frontend, and the share that the whole Service leaves it.
    return {
        family: chains.learning(
            family, routing.affinity_timeout, chains.share_of(max(count, routing.frontends))
        )
        for family, count in counts.items()
    }


def loosened(
    before: Mapping[ObjectName, ServiceRouting], after: Mapping[ObjectName, ServiceRouting | None]
) -> Expectations:
    """Return the frontends whose affinities a change may have made stale, with what is allowed now.

    A frontend whose use changed loses all affinities, because an affinity does not record whether
    its client is internal or external. So does one with another timeout or share, because entries
    that were learned under both would add up.
    """
    # A repair has all Services, as they were committed.
    changed = {name: each for name, each in after.items() if each is not before.get(name)}
    old = expectations(before[name] for name in changed if name in before)
    new = expectations(routing for routing in changed.values() if routing is not None)
    result: Expectations = {}
    for key, was in old.items():
        # A frontend that is gone differs in its use, and so loses all affinities.
        allowed = new.get(key, Allowed(Use.REJECT, _NONE))
        if allowed.use is not was.use or allowed.learning != was.learning:
            result[key] = Allowed(allowed.use, _NONE, allowed.learning)
        elif was.backends - allowed.backends:
            result[key] = allowed
    return result


def stale(
    learned: Rows,
    family: Family,
    allowed: Expectations,
    node_addresses: Collection[Address],
    *,
    all_known: bool,
) -> Table:
    """Return the learned affinities that must be deleted.

    With `all_known`, `allowed` has every affinity frontend, so affinities of all other frontends
    are stale too. `node_addresses` are those of node ports.
    """
    # An affinity's key is the client's address followed by the frontend's key.
    width = family.bits // 8
    gone: Rows = {}
    for key, value in learned.items():
        expected = allowed.get(key[width:])
        # A node port's affinities are learned for each address.
        if expected is None and key[width : 2 * width] in node_addresses:
            expected = allowed.get(node_port_owner(key[width:], family))
        if expected is None:
            if all_known:
                gone[key] = value
        # Data has its port padded to 4 bytes, a Backend has not.
        elif isinstance(value, Tag) or value[: width + 2] not in expected.backends:
            gone[key] = value
    return {AFFINITY.of(family): gone} if gone else {}


def orphans(fresh: Rows, learned: Rows, family: Family) -> Table:
    """Return the clients that are not learned, and would not be for as long as they are fresh."""
    gone: Rows = dict.fromkeys(fresh.keys() - learned.keys(), b"")
    return {AFFINITY_FRESH.of(family): gone} if gone else {}


def unused_limits(limits: Rows, family: Family, allowed: Expectations, *, all_known: bool) -> Table:
    """Return the token buckets of timeouts that their frontends no longer have, as `stale` does.

    They would stay for the timeout, and the set is bounded. Node ports have shorter keys.
    """
    gone: Table = {}
    for key in limits:
        frontend, timeout = key[:-_MARK_SIZE], int.from_bytes(key[-_MARK_SIZE:], sys.byteorder)
        expected = allowed.get(owner_key(frontend, family))
        if all_known if expected is None else chains.timeout_of(expected.learning) != timeout:
            of_node = len(frontend) == NODE_PORT_KEY
            kind = NODE_PORT_AFFINITY_LIMITS if of_node else AFFINITY_LIMITS
            gone.setdefault(kind.of(family), {})[key] = b""
    return gone


def refused_clients(
    refused: Mapping[bytes, int], routing: ServiceRouting, node_addresses: Collection[Address]
) -> dict[bytes, int]:
    """Return the counts of a Service's frontends of all those in `refused`.

    `node_addresses` are those of node ports.
    """
    wanted = expectations([routing]).keys()
    found: dict[bytes, int] = {}
    for key, count in refused.items():
        family = Family.IPV4 if len(key) == _IPV4_FRONTEND else Family.IPV6
        at_node = key[: family.bits // 8] in node_addresses
        if key in wanted or (at_node and node_port_owner(key, family) in wanted):
            found[key] = count
    return found


def _allowed(port: PortRouting, frontend: Frontend, learning: str) -> Allowed:
    match frontend.use:
        case Use.CLUSTER:
            backends = frozenset(port.cluster)
        case Use.LOCAL:
            backends = frozenset(port.local)
        case Use.SPLIT:
            # The map does not record which of the two lists a client belongs to.
            backends = frozenset(port.cluster + port.local)
        case _:
            backends = _NONE
    return Allowed(frontend.use, backends, learning)
