"""The node's part in the base rules, from the configuration and the Node object."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from pyproxy.agent.node_wait import NodeWait
from pyproxy.config import flags
from pyproxy.config.settings import (
    LOOPBACK_IPV6,
    FlowOffload,
    LocalMode,
    Settings,
    is_loopback,
)
from pyproxy.dataplane import modes
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.model.address import (
    FAMILIES,
    Address,
    Backend,
    Family,
    Network,
    Port,
    family_of,
)
from pyproxy.model.objects import Node
from pyproxy.policy.reserved_frontends import ANY, OwnPort, Reserved

log = logging.getLogger(__name__)

_KUBELET_PORT = Port(10250)
"""The kubelet's default --port, which every node has."""


class NodeRules:
    """The pod networks, node port addresses and reserved frontends of the node `hostname`.

    `bounds` are those of its Services, and `offload` is whether their connections are offloaded.

    `local_addresses` returns the addresses of this machine's interfaces with loopback, that of the
    default route first in each family. `broadcasts` returns the broadcast addresses of its
    networks, and `api_servers` those of the API servers that it uses. `large_networks` are local
    networks with more addresses than are listed. `programmable` are the families that the dataplane
    can write.
    """

    def __init__(
        self,
        settings: Settings,
        local_addresses: Callable[[], Iterable[Address]],
        broadcasts: Callable[[], Iterable[Address]] = tuple,
        api_servers: Callable[[], Iterable[Backend]] = tuple,
        large_networks: Callable[[], Iterable[Network]] = tuple,
        programmable: frozenset[Family] = FAMILIES,
    ) -> None:
        self.hostname = settings.node_name
        self.bounds = settings.bounds
        self.wait = NodeWait(settings.node_name)
        # Nothing adds a Node to a folder of manifests that has none.
        self._awaits_node = not settings.manifests
        self._local_traffic = settings.local_traffic
        self._node_ports = settings.node_ports
        self._own_address = settings.node_address
        self._own_ports = tuple(_own_ports(settings))
        self._external_ips = settings.external_ips
        self.divides_node_ports = modes.of(settings.mode).divides_node_ports
        self.offload = settings.nftables.flow_offload is not FlowOffload.NONE
        self._takes_addresses = bool(modes.of(settings.mode).device)
        self._serves_local_networks = modes.of(settings.mode).serves_local_networks
        self._local_addresses = local_addresses
        self._broadcasts = broadcasts
        self._api_servers = api_servers
        self._large_networks = large_networks
        self._programmable = programmable
        self._families = FAMILIES

    def routing(self, node: Node | None) -> NodeRouting:
        """Return them for a Node object; `node` is None if the API has none. Raises KernelError."""
        local = tuple(self._local_addresses())
        reserved = Reserved(
            frozenset(local),
            frozenset(self._broadcasts()),
            self._own_ports,
            frozenset(self._api_servers()),
            self._external_ips,
            self._takes_addresses,
            self._served_families(local),
        )
        node_ports = tuple(
            address
            for address in self._node_port_addresses(node, local)
            if family_of(address) in reserved.families
        )
        # A dataplane that matches all local addresses does so in these families.
        whole = self._node_ports.everywhere_in if self._serves_local_networks else ()
        large = tuple(self._large_networks())
        return NodeRouting(
            self._pod_networks(node),
            node_ports,
            reserved,
            tuple(each for each in large if each.family in whole),
            tuple(each for each in large if each.family not in whole and self._selects(each)),
            self._programmable,
        )

    def _selects(self, network: Network) -> bool:
        """Return whether a local network has addresses that should serve node ports."""
        wanted = self._node_ports
        return wanted.everywhere or any(network.overlaps(each) for each in wanted.networks)

    def _served_families(self, local: Iterable[Address]) -> frozenset[Family]:
        # A family that the kernel has, and that no sysctl disables, has its loopback address.
        present = frozenset(map(family_of, local)) or FAMILIES
        served = present & self._programmable
        for family in sorted(self._families - served):
            log.warning(
                "%s is not served: %s",
                family.label,
                "its rules cannot be written"
                if family in present
                else f"this node has no {family.label} address, not even that of loopback",
            )
        for family in sorted(served - self._families):
            log.info("%s is served again: the node has an address of it", family.label)
        self._families = served
        return served

    def first_sync_due(self, node: Node | None, now: float) -> float:
        """Return the earliest time for the first sync. Call it once the lists are complete."""
        lacks = node is None or (
            # The controllers allocate them after the kubelet has registered the Node.
            self._local_traffic.mode is LocalMode.NODE_CIDR and not node.pod_networks
        )
        return self.wait.due(now, lacks_node=lacks and self._awaits_node)

    def _pod_networks(self, node: Node | None) -> tuple[Network, ...]:
        if self._local_traffic.mode is LocalMode.CLUSTER_CIDR:
            return self._local_traffic.cluster_networks
        if self._local_traffic.mode is LocalMode.NODE_CIDR and node is not None:
            return node.pod_networks
        # The other modes recognize pods by their interface, which the base rules match.
        return ()

    def _node_port_addresses(
        self, node: Node | None, local: tuple[Address, ...]
    ) -> tuple[Address, ...]:
        wanted = self._node_ports
        found: list[Address] = []
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


def _own_ports(settings: Settings) -> Iterator[OwnPort]:
    for flag, listen in (
        (flags.HEALTHZ_BIND_ADDRESS, settings.serving.health),
        (flags.METRICS_BIND_ADDRESS, settings.serving.metrics),
        (flags.UI_BIND_ADDRESS, settings.ui),
    ):
        # With port 0 the kernel chooses the port.
        if listen is not None and listen.port:
            yield OwnPort(listen.address, Port(listen.port), f"pyproxy ({flag.name})")
    yield OwnPort(ANY, _KUBELET_PORT, "the kubelet")
