"""Learned affinities that must be deleted, because their endpoint no longer serves that client.

The kernel keeps a learned affinity until its timeout, and each use restarts the timeout. An
affinity to a removed endpoint would therefore hold its client there for as long as it tries.
Packets to a removed endpoint are not learned once AFFINITY_ENDPOINTS lacks it. One packet may pass
that lookup just before the commit and be learned just after: the map is searched again later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Rows, Table
from pyproxy.dataplane.nftables.schema import AFFINITY
from pyproxy.model.address import Backend, Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Tag
from pyproxy.policy.routing import Frontend, PortRouting, ServiceRouting, Use


class Allowed(msgspec.Struct, frozen=True):
    """A frontend's use, and the endpoints that its clients may return to."""

    use: Use
    backends: frozenset[Backend]


Expectations = dict[bytes, Allowed]
"""The endpoints that clients may return to, by frontend key."""

_NONE: frozenset[Backend] = frozenset()


def expectations(routings: Iterable[ServiceRouting]) -> Expectations:
    """Return the endpoints that clients of these Services' affinity frontends may return to."""
    return {
        frontend_key(frontend.address, port.protocol, frontend.port): _allowed(port, frontend)
        for routing in routings
        if routing.affinity_timeout
        for port in routing.ports
        for frontend in port.frontends
    }


def loosened(
    before: Mapping[ObjectName, ServiceRouting], after: Mapping[ObjectName, ServiceRouting | None]
) -> Expectations:
    """Return the frontends whose affinities a change may have made stale, with what is allowed now.

    A frontend whose use changed loses all affinities, because an affinity does not record whether
    its client is internal or external.
    """
    old = expectations(before[name] for name in after if name in before)
    new = expectations(routing for routing in after.values() if routing is not None)
    result: Expectations = {}
    for key, was in old.items():
        # A frontend that is gone differs in its use, and so loses all affinities.
        allowed = new.get(key, Allowed(Use.REJECT, _NONE))
        if allowed.use is not was.use:
            result[key] = Allowed(allowed.use, _NONE)
        elif was.backends - allowed.backends:
            result[key] = allowed
    return result


def stale(learned: Rows, family: Family, allowed: Expectations, *, all_known: bool) -> Table:
    """Return the learned affinities that must be deleted.

    With `all_known`, `allowed` has every affinity frontend, so affinities of all other frontends
    are stale too.
    """
    # An affinity's key is the client's address followed by the frontend's key.
    width = family.bits // 8
    gone: Rows = {}
    for key, value in learned.items():
        expected = allowed.get(key[width:])
        if expected is None:
            if all_known:
                gone[key] = value
        # Data has its port padded to 4 bytes, a Backend has not.
        elif isinstance(value, Tag) or value[: width + 2] not in expected.backends:
            gone[key] = value
    return {AFFINITY.of(family): gone} if gone else {}


def _allowed(port: PortRouting, frontend: Frontend) -> Allowed:
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
    return Allowed(frontend.use, backends)
