"""The alerts of the kernel's drop monitor: a dropped packet's addresses, and why it was dropped.

Facts: include/uapi/linux/net_dropmon.h, net/core/drop_monitor.c, include/net/dropreason-core.h.
In packet mode each alert has the first bytes of the packet. They begin at the link-layer header, or
at the IP header on a device that has none. Linux before 6.0 gives the function, and no reason.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from pyproxy.model.address import Address, Backend, Port, backend
from pyproxy.netlink.attributes import attribute_map, text
from pyproxy.netlink.frames import HEADER, read_messages
from pyproxy.netlink.generic import GENERIC_SIZE

PACKET_ALERT = 5
"""The command NET_DM_CMD_PACKET_ALERT."""

_SYMBOL, _PROTO, _PAYLOAD, _REASON = 3, 6, 7, 23
_ETHERNET = 14
_IPV4, _IPV6 = 0x0800, 0x86DD
_VLANS = (0x8100, 0x88A8)
_VLAN_TAG = 4
_V4, _V6 = struct.Struct(">6xH12s"), struct.Struct(">6x1s1x16s16s")
_FRAGMENT_OFFSET = 0x1FFF
# Hop-by-hop options, routing header, destination options; the fragment header has a fixed size.
_EXTENSIONS, _FRAGMENT = (0, 43, 60), 44
_NO_REASON = ("", "NOT_SPECIFIED")


class Alert(msgspec.Struct, frozen=True):
    """One dropped packet of a protocol with ports.

    `source` and `destination` are address and port, as they were when the packet was dropped.
    `function` is the kernel's, such as `tcp_v4_rcv`. `reason` is the name of the drop reason
    without its prefix, such as `NO_SOCKET`; empty if the kernel gives none.
    """

    protocol: int
    source: Backend
    destination: Backend
    function: str
    reason: str


def read_alerts(data: bytes, family: int) -> Iterator[Alert]:
    """Yield the alerts of one datagram whose packets have ports; `family` is NET_DM's number."""
    for kind, _, _, _, message in read_messages(data):
        if kind != family or message[HEADER.size : HEADER.size + 1] != bytes((PACKET_ALERT,)):
            continue
        fields = attribute_map(message[HEADER.size + GENERIC_SIZE :])
        ends = _ends(bytes(fields.get(_PAYLOAD, b"")), fields.get(_PROTO, memoryview(b"")))
        if ends is not None:
            reason = text(fields[_REASON]) if _REASON in fields else ""
            # "ip_rcv_finish_core.constprop.0+0x1ab/0x3f0": the compiler's suffix differs by build.
            function = (
                text(fields[_SYMBOL]).split("+")[0].split(".")[0] if _SYMBOL in fields else ""
            )
            yield Alert(*ends, function, "" if reason in _NO_REASON else reason)


def _ends(packet: bytes, protocol: memoryview) -> tuple[int, Backend, Backend] | None:
    ethertype = int(struct.unpack("=H", protocol)[0]) if len(protocol) == 2 else 0
    at = _network_header(packet, ethertype)
    if at is None:
        return None
    return _ends4(packet[at:]) if ethertype == _IPV4 else _ends6(packet[at:])


def _network_header(packet: bytes, ethertype: int) -> int | None:
    if ethertype not in (_IPV4, _IPV6):
        return None
    at = _ETHERNET
    while int.from_bytes(packet[at - 2 : at], "big") in _VLANS:
        at += _VLAN_TAG
    version = 4 if ethertype == _IPV4 else 6
    has_link_layer = int.from_bytes(packet[at - 2 : at], "big") == ethertype
    if has_link_layer and packet[at : at + 1] and packet[at] >> 4 == version:
        return at
    # Tunnels and other devices without a link-layer header.
    return 0 if packet[:1] and packet[0] >> 4 == version else None


def _ends4(packet: bytes) -> tuple[int, Backend, Backend] | None:
    if len(packet) < _V4.size:
        return None
    fragment, rest = _V4.unpack_from(packet)
    if fragment & _FRAGMENT_OFFSET:
        return None
    return _with_ports(rest[1], rest[4:8], rest[8:12], packet[(packet[0] & 0xF) * 4 :])


def _ends6(packet: bytes) -> tuple[int, Backend, Backend] | None:
    if len(packet) < _V6.size:
        return None
    following, source, destination = _V6.unpack_from(packet)
    protocol, at = following[0], _V6.size
    while len(packet) >= at + 8:
        if protocol in _EXTENSIONS:
            protocol, at = packet[at], at + (packet[at + 1] + 1) * 8
        elif protocol == _FRAGMENT:
            if int.from_bytes(packet[at + 2 : at + 4], "big") >> 3:
                return None
            protocol, at = packet[at], at + 8
        else:
            return _with_ports(protocol, source, destination, packet[at:])
    return None


_WITH_PORTS = (6, 17, 132)


def _with_ports(
    protocol: int, source: bytes, destination: bytes, transport: bytes
) -> tuple[int, Backend, Backend] | None:
    if protocol not in _WITH_PORTS or len(transport) < 4:
        return None
    ports = struct.unpack_from(">HH", transport)
    return (
        protocol,
        backend(Address(source), Port(ports[0])),
        backend(Address(destination), Port(ports[1])),
    )
