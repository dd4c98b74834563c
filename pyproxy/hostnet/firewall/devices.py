"""This node's devices and addresses, as far as rules test them.

Facts: include/uapi/linux/if_link.h and rtnetlink(7).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import closing

import msgspec

from pyproxy.hostnet.firewall.hook_packet import Host
from pyproxy.model.address import Address, Family, family_of
from pyproxy.netlink import rtnetlink
from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.requests import Request, Requests
from pyproxy.netlink.sockets import NETLINK_ROUTE

_GETLINK = 18
_IFINFOMSG = struct.Struct("=BxHiII")
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO = 3, 10, 18
_IFLA_INFO_KIND = 1


class Devices(msgspec.Struct, frozen=True):
    """Devices by name, the ports of each bridge, and the addresses of each device."""

    host: Host
    bridges: Mapping[str, tuple[str, ...]] = {}
    addresses: Mapping[str, tuple[Address, ...]] = {}

    def own_address(self, device: str, family: Family) -> Address | None:
        """Return a device's first address of a family, which masquerading would use."""
        found = self.addresses.get(device, ())
        return next((each for each in found if _is_usable(each, family)), None)


def _is_usable(address: Address, family: Family) -> bool:
    # Masquerading does not use link-local addresses for packets that are forwarded.
    return family_of(address) is family and address[:2] != b"\xfe\x80"


def read_devices() -> Devices:
    """Read the devices of the caller's network namespace. Blocks; raises KernelError."""
    with closing(Requests(NETLINK_ROUTE, "devices")) as kernel:
        links = kernel.dump(Request(_GETLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0)))
        assigned = rtnetlink.read_addresses(kernel.dump(rtnetlink.get_addresses()))
    names: dict[int, str] = {}
    masters: dict[int, int] = {}
    bridges: set[int] = set()
    for reply in links:
        index = int(_IFINFOMSG.unpack_from(reply)[2])
        fields = attribute_map(reply[_IFINFOMSG.size :])
        names[index] = text(fields.get(_IFLA_IFNAME, memoryview(b"")))
        kind = attribute_map(fields.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, memoryview(b""))
        if text(kind) == "bridge":
            bridges.add(index)
        if _IFLA_MASTER in fields:
            masters[index] = int(struct.unpack("=I", fields[_IFLA_MASTER])[0])
    ports = {
        names[bridge]: tuple(names[each] for each, master in masters.items() if master == bridge)
        for bridge in bridges
    }
    addresses: dict[str, tuple[Address, ...]] = {}
    for each in assigned:
        name = names.get(each.device, "")
        addresses[name] = (*addresses.get(name, ()), each.address)
    host = Host(
        {name: index for index, name in names.items()},
        frozenset(each.address for each in assigned),
    )
    return Devices(host, ports, addresses)
