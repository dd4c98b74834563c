"""The network devices of a Service's packets, each read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

import msgspec

from pyproxy.model.address import Address, Family, Network, family_of
from pyproxy.netlink.links import Link, get_link, read_links
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.rtnetlink import get_addresses, read_addresses
from pyproxy.netlink.sockets import NETLINK_ROUTE

PODS = ("veth", "tun")
"""The kinds of the ends of pods' cables on the node."""

_LINK_LOCAL = b"\xfe\x80"


class Devices(msgspec.Struct, frozen=True):
    """The devices of this node by index, and the index of the one that has each address."""

    links: Mapping[int, Link] = {}
    by_address: Mapping[Address, int] = {}

    @property
    def with_address(self) -> set[int]:
        """The devices that have an address, link-local ones of IPv6 aside."""
        return {
            device
            for address, device in self.by_address.items()
            if not (len(address) == 16 and address.startswith(_LINK_LOCAL))
        }

    def name(self, index: int) -> str:
        """Return a device's name; empty for 0."""
        found = self.links.get(index)
        return found.name if found else str(index) if index else ""

    def named(self, name: str) -> Link | None:
        """Return the device of a name."""
        return next((link for link in self.links.values() if link.name == name), None)

    def of_any(self, addresses: tuple[Address, ...], family: Family) -> int:
        """Return the device that has the first of a family's addresses; 0 if none has."""
        for address in addresses:
            if family_of(address) is family and address in self.by_address:
                return self.by_address[address]
        return 0

    def own_addresses(self, pods: Sequence[Network]) -> frozenset[Address]:
        """Return this node's addresses; `pods` are the networks of its pods.

        An address of a pod on lo, or on a dummy, is a mistake, and remains the pod's.
        """
        found = set()
        for address, device in self.by_address.items():
            link = self.links.get(device)
            is_alone = link is not None and (link.name == "lo" or link.kind == "dummy")
            if not (is_alone and any(address in network for network in pods)):
                found.add(address)
        return frozenset(found)

    def bridge_of(self, pod: Address, networks: Sequence[Network]) -> int:
        """Return the bridge of a pod of this node: the one with an address in the pod's network.

        `networks` are those of this node's pods. 0 if there is none, as where each pod has a
        route of its own, or none with ports, as one that an earlier network plugin left behind.
        """
        around = [network for network in networks if pod in network]
        with_ports = {link.master for link in self.links.values() if link.kind in PODS}
        for address, device in self.by_address.items():
            link = self.links.get(device)
            is_bridge = link is not None and link.kind == "bridge" and device in with_ports
            if is_bridge and any(address in network for network in around):
                return device
        return 0


def read_devices() -> Devices:
    """Read all devices and their addresses. Blocks for two dumps. Raises KernelError."""
    with closing(Requests(NETLINK_ROUTE, "rtnetlink")) as kernel:
        links = {link.index: link for link in read_links(kernel.dump(get_link(0)))}
        addresses = read_addresses(kernel.dump(get_addresses()))
    return Devices(links, {each.address: each.device for each in addresses})
