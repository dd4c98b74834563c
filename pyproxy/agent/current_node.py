"""The node's routing at the last sync, and what a change of the node's addresses concerns."""

from __future__ import annotations

from pyproxy.agent.cluster_state import ClusterState
from pyproxy.agent.node import NodeRules
from pyproxy.agent.service_router import ServiceRouter
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.model.address import family_of


class CurrentNode:
    """Reads the node's routing when it may have changed, and not more often.

    `routing` is that of the last sync, and has newer addresses if these concern no dataplane.
    """

    def __init__(
        self, rules: NodeRules, router: ServiceRouter, cluster_state: ClusterState
    ) -> None:
        self.routing = NodeRouting()
        self._rules = rules
        self._router = router
        self._cluster_state = cluster_state
        self._newest: NodeRouting | None = None

    def forget(self) -> None:
        """Have the next sync read the addresses, because the Node has changed, or a sync failed."""
        self._newest = None

    def read_all(self) -> NodeRouting:
        """Return the routing for a sync that routes all Services. Raises KernelError."""
        return self._rules.routing(self._cluster_state.node)

    def newest(self) -> NodeRouting:
        """Return the routing for a sync, and read it if it is not known. Raises KernelError."""
        if self._newest is None:
            # Queues the Services too, because a later notification will find no difference.
            self.read_addresses()
        return self._newest or self.routing

    def read_addresses(self) -> bool:
        """Read the addresses, and queue the Services that what differs from `routing` concerns.

        Return whether the dataplane has to write the node's part. Raises KernelError.
        """
        state = self._cluster_state
        new, old = self._rules.routing(state.node), self.routing
        here, before = frozenset(new.node_port_addresses), frozenset(old.node_port_addresses)
        concerns_all = (
            new.pod_networks != old.pod_networks
            or new.reserved.families != old.reserved.families
            # A health-check node port is claimed in the families that node ports have.
            or set(map(family_of, here)) != set(map(family_of, before))
        )
        state.route_again(state.services if concerns_all else self._router.concerned_by(old, new))
        self._newest = new
        is_written = concerns_all or here != before
        if not is_written:
            self.routing = new
        return is_written
