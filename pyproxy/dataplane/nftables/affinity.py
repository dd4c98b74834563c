"""Which learned affinities must go, because their endpoint may serve that client no more.

The kernel keeps what packets taught it until its timeout, and each use begins that anew, so an
entry that leads to an endpoint which has left would hold its client there for as long as it tries.
What is on its way to such an endpoint teaches nothing any more once the endpoint has left the
table, but for a packet that was past that rule and not yet learned: hence a second look later.
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
    """What a sticky frontend's clients may go on using: its use, and the backends of it."""

    use: Use
    backends: frozenset[Backend]


Expectations = dict[bytes, Allowed]
"""What is allowed, by frontend key."""


def expectations(routings: Iterable[ServiceRouting]) -> Expectations:
    """Say what the clients of these Services' sticky frontends may go on using."""
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
    """Tell which frontends may have entries that a change has made stale, and what is allowed now.

    A frontend whose policy changed lets go of everybody: whom an entry was for, a pod or somebody
    outside, cannot be told from the entry.
    """
    then = expectations(before[name] for name in after if name in before)
    now = expectations(routing for routing in after.values() if routing is not None)
    nobody: frozenset[Backend] = frozenset()
    result: Expectations = {}
    for key, was in then.items():
        allowed = now.get(key, Allowed(Use.REJECT, nobody))
        if allowed.use is not was.use:
            result[key] = Allowed(allowed.use, nobody)
        elif was.backends - allowed.backends:
            result[key] = allowed
    return result


def stale(learned: Rows, family: Family, allowed: Expectations, *, all_known: bool) -> Table:
    """Pick the learned elements that must go.

    `all_known` says that `allowed` names every sticky frontend there is, so that an entry of
    another one is left over from before.
    """
    width = family.bits // 8
    gone: Rows = {}
    for key, value in learned.items():
        expected = allowed.get(key[width:])
        if expected is None:
            if all_known:
                gone[key] = value
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
            backends = frozenset(port.cluster + port.local)
        case _:
            backends = frozenset()
    return Allowed(frontend.use, backends)
