"""Searches of the maps of session affinity: stale entries are deleted, refusals are counted.

The agent does not know what packets write, so each search reads the maps whole. They may be large,
and a tenant may change endpoints all the time. The pause after a large search is therefore
ten times as long as the search, and what changes meanwhile waits for its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pyproxy.dataplane.committed_state import Routings
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.affinity import (
    Expectations,
    expectations,
    loosened,
    orphans,
    refused_clients,
    stale,
    unused_limits,
)
from pyproxy.dataplane.nftables.plan import NftablesPlan
from pyproxy.dataplane.nftables.readback import read_learned, read_refused
from pyproxy.dataplane.nftables.schema import (
    AFFINITY,
    AFFINITY_FRESH,
    AFFINITY_LIMITS,
    NODE_PORT_AFFINITY_LIMITS,
    TABLE,
)
from pyproxy.errors import StaleStateError
from pyproxy.model.address import Family
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import Shape, delete_elements
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM
from pyproxy.policy.routing import ServiceRouting

_FEW = 10_000
"""Entries that a search reads without a pause after it."""

_PAUSE = 25e-6
"""Seconds of that pause for each entry, about ten times as long as reading it takes."""


class AffinitySearch:
    """Reads and deletes what packets learned. All methods block and raise KernelError."""

    def __init__(self, netlink: Nfnetlink, clock: Callable[[], float]) -> None:
        self._netlink = netlink
        self._clock = clock
        self._next = 0.0
        self._lately = self._before = False

    def after_commit(
        self,
        plan: NftablesPlan,
        services: Mapping[ObjectName, ServiceRouting],
        node: NodeRouting,
    ) -> None:
        """Delete the affinities that a plan has made stale.

        `services` and `node` were committed before it.
        """
        now = plan.node or node
        # A client of an address that comes back later may have an endpoint that is gone by then.
        has_left = not {*node.node_port_addresses} <= {*now.node_port_addresses}
        all_known = plan.whole or has_left
        allowed = {} if plan.whole else loosened(services, plan.services)
        is_stale = bool(allowed)
        if all_known:
            after = plan.services if plan.whole else {**services, **plan.services}
            allowed = expectations(each for each in after.values() if each is not None)
            # The last Service with affinities may have gone together with an address.
            is_stale |= bool(allowed)
        if not (is_stale or plan.whole):
            return
        if plan.whole or self._clock() >= self._next:
            self._search(allowed, now, all_known=all_known)
        # A packet that read the old elements may still be about to add its affinity.
        self._lately |= is_stale and bool(plan)

    def tick(self, services: Iterable[ServiceRouting], node: NodeRouting) -> None:
        """Search once more, a second or two after a search that was due. Idempotent."""
        if self._clock() < self._next:
            return
        # Two ticks pass, because the first may come just after the commit.
        due, self._before = self._before, self._lately
        self._lately = False
        if due:
            self._search(expectations(services), node, all_known=True)

    def refused(
        self, services: Routings, node: NodeRouting
    ) -> Mapping[ObjectName, Mapping[bytes, int]]:
        """Count connections of late whose client was not learned, by Service and frontend.

        Idempotent.
        """
        refused: dict[bytes, int] = {}
        for family in Family:
            refused |= read_refused(self._netlink, family)
        found: dict[ObjectName, Mapping[bytes, int]] = {}
        if refused:
            at_node = frozenset(node.node_port_addresses)
            for name, routing in services.items():
                if routing is None or not routing.affinity_timeout:
                    continue
                if counts := refused_clients(refused, routing, at_node):
                    found[name] = counts
        return found

    def _search(self, allowed: Expectations, node: NodeRouting, *, all_known: bool) -> None:
        count, at_node = 0, frozenset(node.node_port_addresses)
        for family in Family:
            learned = read_learned(self._netlink, family)
            count += len(learned)
            gone = stale(learned, family, allowed, at_node, all_known=all_known)
            self._delete_all(gone)
            for key in gone.get(AFFINITY.of(family), ()):
                del learned[key]
            fresh = read_learned(self._netlink, family, AFFINITY_FRESH)
            self._delete_all(orphans(fresh, learned, family))
            limits = read_learned(self._netlink, family, AFFINITY_LIMITS)
            limits |= read_learned(self._netlink, family, NODE_PORT_AFFINITY_LIMITS)
            self._delete_all(unused_limits(limits, family, allowed, all_known=all_known))
        if count > _FEW:
            self._next = self._clock() + _PAUSE * count

    def _delete_all(self, table: Table) -> None:
        for name, rows in table.items():
            self._delete(name, list(rows))

    def _delete(self, name: str, keys: list[bytes]) -> None:
        writes = delete_elements(TABLE, name, keys, Shape.EXACT)
        errors = self._netlink.transact([write.message for write in writes], SUBSYSTEM)
        if not errors:
            return
        if not isinstance(errors[0].error, StaleStateError):
            raise errors[0].error
        # An affinity may time out after it was read, and its ENOENT then undoes the whole batch.
        # Halves keep the number of batches small even if many time out.
        if len(keys) > 1:
            middle = len(keys) // 2
            self._delete(name, keys[:middle])
            self._delete(name, keys[middle:])
