"""The node's part in the base rules, from the configuration and the Node object."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from pyproxy.config.settings import LOOPBACK_IPV6, LocalMode, Settings, is_loopback
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.model.address import Address, Family, Network, family_of
from pyproxy.model.objects import Node

log = logging.getLogger(__name__)


class NodeRules:
    """The pod networks and node port addresses of the node `hostname`, and its Services' bounds.

    `local_addresses` returns the addresses of this machine's interfaces with loopback, that of the
    default route first in each family.
    """

    def __init__(
        self, settings: Settings, local_addresses: Callable[[], Iterable[Address]]
    ) -> None:
        self.hostname = settings.node_name
        self.bounds = settings.bounds
        self._local_traffic = settings.local_traffic
        self._node_ports = settings.node_ports
        self._own_address = settings.node_address
        self._local_addresses = local_addresses

    def routing(self, node: Node | None) -> NodeRouting:
        """Return both for a Node object; `node` is None if the API has none. Raises KernelError."""
        return NodeRouting(self._pod_networks(node), self._node_port_addresses(node))

    def _pod_networks(self, node: Node | None) -> tuple[Network, ...]:
        if self._local_traffic.mode is LocalMode.CLUSTER_CIDR:
            return self._local_traffic.cluster_networks
        if self._local_traffic.mode is LocalMode.NODE_CIDR and node is not None:
            return node.pod_networks
        # The other modes recognize pods by their interface, which the base rules match.
        return ()

    def _node_port_addresses(self, node: Node | None) -> tuple[Address, ...]:
        wanted = self._node_ports
        found: list[Address] = []
        local = tuple(self._local_addresses())
        if wanted.primary:
            found += self._primary(node, local)
        found += (
            address
            for address in local
            if (wanted.localhost if is_loopback(address) else wanted.everywhere)
            or any(address in network for network in wanted.networks)
        )
        # A dict and not a set: in another order, the same addresses would count as a change.
        return tuple(
            dict.fromkeys(
                each
                for each in found
                # IPv6 has no route_localnet, so replies from a pod to ::1 would be dropped.
                if each != LOOPBACK_IPV6 and (wanted.loopback or not is_loopback(each))
            )
        )

    def _primary(self, node: Node | None, local: tuple[Address, ...]) -> list[Address]:
        primary: dict[Family, Address] = {}
        # As in kube-proxy, --bind-address precedes the Node's addresses in its own family only.
        if self._own_address is not None:
            primary[family_of(self._own_address)] = self._own_address
        named = node.addresses if node is not None else ()
        outward = tuple(address for address in local if not is_loopback(address))
        for address in named or outward:
            primary.setdefault(family_of(address), address)
        return list(primary.values())
