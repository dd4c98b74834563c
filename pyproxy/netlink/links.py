"""Network devices: their state, MTU and kind, over rtnetlink.

Facts: include/uapi/linux/if_link.h and if.h, net/core/rtnetlink.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from pyproxy.netlink.attributes import attribute, attribute_map, text
from pyproxy.netlink.requests import Request

_GETLINK = 18
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 3, 4, 5, 10, 18
_IFLA_GROUP, _IFLA_EXT_MASK, _IFLA_CARRIER = 27, 29, 33
_IFLA_LINK_NETNSID, _IFLA_XDP = 37, 43
_XDP_ATTACHED = 2
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_PORT_STATE, _PORT_HAIRPIN, _PORT_ISOLATED = 1, 4, 33
_PORT_LOCKED = 39
_SKIP_STATISTICS = struct.pack("=I", 1 << 3)
_IFF_UP, _IFF_POINTOPOINT, _IFF_NOARP = 1, 0x10, 0x80
_IFINFOMSG = struct.Struct("=BxHiII")
_NUMBER = struct.Struct("=I")
# The attribute of the data of a tunnel's kind that holds the index of the device below it.
_LOWER = {"vxlan": 3, "ipip": 1, "gre": 1, "sit": 1}


FORWARDING = 3
"""The state of a bridge's port that forwards; 0 is disabled, 4 blocking."""


class BridgePort(msgspec.Struct, frozen=True):
    """A port of a bridge: its state, and whether it sends back and to other isolated ports.

    A `locked` port accepts no frame of a sender that the bridge does not know.
    """

    state: int = FORWARDING
    hairpin: bool = False
    isolated: bool = False
    locked: bool = False


class Link(msgspec.Struct, frozen=True):
    """A network device.

    `up` is its administrative state, `carrier` whether it has a link. `kind` is the kernel's name
    of its driver, such as bridge or vxlan, empty for hardware. `master` and `lower` are the indices
    of the bridge that it is a port of, and of the device that a tunnel or a VLAN sends through; 0
    for none.
    `port` is set for a bridge's port. `group` is a number that rules test, `xdp` true if an XDP
    program is attached. `arp` is false if it asks for no link address, as tunnels do too.
    `peer_elsewhere` is true if its other end is in another network namespace.
    """

    index: int
    name: str
    up: bool = True
    carrier: bool = True
    mtu: int = 0
    kind: str = ""
    master: int = 0
    lower: int = 0
    port: BridgePort | None = None
    group: int = 0
    xdp: bool = False
    arp: bool = True
    peer_elsewhere: bool = False


def get_link(index: int) -> Request:
    """Request one device, or with 0 in a dump all of them; ENODEV if there is none."""
    head = _IFINFOMSG.pack(0, 0, index, 0, 0)
    return Request(_GETLINK, 0, head + attribute(_IFLA_EXT_MASK, _SKIP_STATISTICS))


def read_links(replies: Iterable[memoryview]) -> Iterator[Link]:
    """Read the replies to `get_link`."""
    for reply in replies:
        if len(reply) < _IFINFOMSG.size:
            continue
        _, _, index, flags, _ = _IFINFOMSG.unpack_from(reply)
        fields = attribute_map(reply[_IFINFOMSG.size :])
        info = attribute_map(fields.get(_IFLA_LINKINFO, b""))
        kind = text(info.get(_INFO_KIND, memoryview(b"")))
        lower = 0
        if kind in _LOWER:
            data = attribute_map(info.get(_INFO_DATA, b""))
            lower = _number(data.get(_LOWER[kind]))
        elif kind == "vlan" and _IFLA_LINK_NETNSID not in fields:
            lower = _number(fields.get(_IFLA_LINK))
        carrier = fields.get(_IFLA_CARRIER)
        yield Link(
            index=index,
            name=text(fields.get(_IFLA_IFNAME, memoryview(b""))),
            up=bool(flags & _IFF_UP),
            arp=not flags & _IFF_NOARP or bool(flags & _IFF_POINTOPOINT),
            carrier=carrier is None or any(carrier),
            mtu=_number(fields.get(_IFLA_MTU)),
            kind=kind,
            master=_number(fields.get(_IFLA_MASTER)),
            lower=lower,
            port=_port(info),
            group=_number(fields.get(_IFLA_GROUP)),
            peer_elsewhere=_IFLA_LINK_NETNSID in fields,
            xdp=any(attribute_map(fields.get(_IFLA_XDP, b"")).get(_XDP_ATTACHED, b"")),
        )


def _port(info: Mapping[int, memoryview]) -> BridgePort | None:
    if text(info.get(_INFO_SLAVE_KIND, memoryview(b""))) != "bridge":
        return None
    fields = attribute_map(info.get(_INFO_SLAVE_DATA, b""))
    state = fields.get(_PORT_STATE)
    return BridgePort(
        state[0] if state else FORWARDING,
        any(fields.get(_PORT_HAIRPIN, b"")),
        any(fields.get(_PORT_ISOLATED, b"")),
        any(fields.get(_PORT_LOCKED, b"")),
    )


def _number(value: memoryview | None) -> int:
    return int(_NUMBER.unpack(value)[0]) if value is not None and len(value) == _NUMBER.size else 0
