"""The node's routing at the last sync, and what a change of the node's addresses concerns."""

from __future__ import annotations

import msgspec

from pyproxy.agent.node import NodeRules
from pyproxy.agent.service_router import ServiceRouter
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.model.address import family_of
from pyproxy.model.objects import Node, ObjectName


class AddressChange(msgspec.Struct, frozen=True):
    """The consequences of new addresses of the node.

    `services` are those to route again, None for all. `is_written` says that the dataplane has to
    write the node's part in its rules.
    """

    services: frozenset[ObjectName] | None = frozenset()
    is_written: bool = False


class CurrentNode:
    """Reads the node's routing when it may have changed, and not more often.

    `routing` is that of the last sync, and has newer addresses if these concern no dataplane.
    """

    def __init__(self, rules: NodeRules, router: ServiceRouter) -> None:
        self.routing = NodeRouting()
        self._rules = rules
        self._router = router
        self._newest: NodeRouting | None = None

    def forget(self) -> None:
        """Have the next sync read the addresses, because the Node has changed, or a sync failed."""
        self._newest = None

    def read(self, node: Node | None) -> NodeRouting:
        """Return the newest routing, and read it if that is not known. Raises KernelError."""
        newest, self._newest = self._newest, None
        return newest or self._rules.routing(node)

    def read_addresses(self, node: Node | None) -> AddressChange:
        """Read the addresses, and return what differs from `routing`. Raises KernelError."""
        new, old = self._rules.routing(node), self.routing
        here, before = frozenset(new.node_port_addresses), frozenset(old.node_port_addresses)
        concerns_all = (
            new.pod_networks != old.pod_networks
            or new.reserved.families != old.reserved.families
            # A health-check node port is claimed in the families that node ports have.
            or set(map(family_of, here)) != set(map(family_of, before))
        )
        concerned = None if concerns_all else self._router.concerned_by(old, new)
        is_written = concerns_all or here != before
        if is_written:
            self._newest = new
        else:
            self.routing, self._newest = new, None
        return AddressChange(concerned, is_written)
