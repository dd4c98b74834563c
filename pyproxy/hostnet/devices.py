"""The network devices of a Service's packets, each read once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import msgspec

from pyproxy.model.address import Address, Family, family_of
from pyproxy.netlink.links import Link, get_link, read_links
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.rtnetlink import get_addresses, read_addresses
from pyproxy.netlink.sockets import NETLINK_ROUTE


class Devices(msgspec.Struct, frozen=True):
    """The devices of this node by index, and the index of the one that has each address."""

    links: Mapping[int, Link] = {}
    by_address: Mapping[Address, int] = {}

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


def read_devices() -> Devices:
    """Read all devices and their addresses. Blocks for two dumps. Raises KernelError."""
    with closing(Requests(NETLINK_ROUTE, "rtnetlink")) as kernel:
        links = {link.index: link for link in read_links(kernel.dump(get_link(0)))}
        addresses = read_addresses(kernel.dump(get_addresses()))
    return Devices(links, {each.address: each.device for each in addresses})
