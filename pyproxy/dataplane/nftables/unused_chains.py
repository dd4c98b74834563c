"""Which chains made on demand no Service needs any more.

There are a few dozen chains that pick endpoints, one for each class. A chain that learns affinities
exists for each timeout and share, of which a Service may have hundreds one after another. Unused
ones would stay in the kernel, and each read-back would take longer by them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.affinity import learning_chains
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_chain
from pyproxy.policy.routing import ServiceRouting

_SPARE = 32
"""Unused chains that stay, so that a Service which changes now and then costs no search."""


class UnusedChains:
    """Deletes the chains that no Service needs, once there are many more than before."""

    def __init__(self) -> None:
        self._most = _SPARE

    def delete(
        self, netlink: Nfnetlink, present: Iterable[str], routings: Collection[ServiceRouting]
    ) -> frozenset[str]:
        """Delete chains that are not needed, and return their names; raises KernelError.

        `present` are the chains made on demand, and `routings` those of all Services in the kernel.
        """
        learning = {name for name in present if chains.is_learning(name)}
        if len(learning) <= self._most:
            return frozenset()
        needed = {name for routing in routings for name in learning_chains(routing).values()}
        # Twice, so that Services with many timeouts are not searched at each call.
        self._most = 2 * len(needed) + _SPARE
        unused = frozenset(learning - needed)
        # Sorted, so that the same chains make the same messages.
        errors = netlink.transact([delete_chain(TABLE, name) for name in sorted(unused)], SUBSYSTEM)
        # An element that another program added keeps its chain, and the kernel then keeps all.
        return frozenset() if errors else unused
