"""Membership in ipsets, which matches of iptables test, one element at a time.

Facts: include/uapi/linux/netfilter/ipset/ip_set.h and net/netfilter/ipset/ip_set_core.c. A rule has
a set's index; the kernel tests an element for a process as it does for a packet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from pyproxy.errors import KernelError
from pyproxy.hostnet.firewall.bits import DoubtKind, doubt
from pyproxy.hostnet.firewall.hook_packet import (
    ANY_CLIENT,
    ANY_INTERFACE,
    NO,
    YES,
    HookPacket,
    Match,
)
from pyproxy.model.address import Address, Family
from pyproxy.netlink.attributes import attribute, attribute_map, nested, string, text
from pyproxy.netlink.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6, Message, Nfnetlink

_SUBSYSTEM = 6
_TEST, _HEADER, _GET_BY_INDEX = 11, 12, 15
_PROTOCOL, _SET_NAME, _TYPE_NAME, _FAMILY, _DATA, _INDEX = 1, 2, 3, 5, 7, 11
_VERSION = attribute(_PROTOCOL, b"\7")
_IP, _PORT, _PROTO, _MARK, _IP2, _IFACE = 1, 4, 7, 10, 20, 23
_NET_BYTEORDER = 0x4000
_NOT_IN_SET = 4103
"""IPSET_ERR_EXIST, the kernel's reply for an element that is not in a set."""

_INVERTED = 1
_RATE = doubt(DoubtKind.RATE, "an ipset's counters")

Pack = Callable[[HookPacket, bool, int], bytes | Match]
"""Pack one dimension of an element: of a packet, of its source or not, by its place from 1."""


class IpSets:
    """The ipsets of the network namespace in which the first one is tested.

    Methods block on the kernel; one thread may use it at a time. A set that the kernel does not
    return is undecided.
    """

    def __init__(self) -> None:
        self._netlink: Nfnetlink | None = None
        self._types: dict[int, tuple[str, str, int] | None] = {}
        self._found: dict[tuple[str, bytes], bool | None] = {}

    def close(self) -> None:
        """Close the socket; idempotent."""
        if self._netlink is not None:
            self._netlink.close()

    def match(self, info: bytes, packet: HookPacket) -> Match:
        """Return the result of the match `set`, from revision 1 on."""
        index, _, flags = struct.unpack_from("=HBB", info)
        # From revision 3 on it may also compare the element's counters.
        if len(info) >= 40 and (info[16] or info[32]):
            return Match(None, _RATE)
        found = self._type(index)
        if found is None:
            return Match(None, doubt(DoubtKind.UNREADABLE, f"the ipset of index {index}"))
        name, kind, family = found
        if family not in (0, _NFPROTO[packet.family]):
            return _inverted(False, flags)
        element = _element(name, kind, flags, packet)
        if isinstance(element, bytes):
            inside = self._test(name, element, packet.family)
            if inside is None:
                return Match(None, doubt(DoubtKind.UNREADABLE, f"ipset {name} of type {kind}"))
            return _inverted(inside, flags)
        return element if element.value is None else _inverted(bool(element.value), flags)

    def _type(self, index: int) -> tuple[str, str, int] | None:
        if index not in self._types:
            try:
                self._types[index] = self._read_type(index)
            except KernelError:
                self._types[index] = None
        return self._types[index]

    def _read_type(self, index: int) -> tuple[str, str, int]:
        number = attribute(_INDEX | _NET_BYTEORDER, struct.pack(">H", index))
        name = text(attribute_map(self._get(_GET_BY_INDEX, number, NFPROTO_IPV4))[_SET_NAME])
        header = attribute_map(self._get(_HEADER, string(_SET_NAME, name), NFPROTO_IPV4))
        family = header.get(_FAMILY, b"\0")
        return name, text(header[_TYPE_NAME]), family[0]

    def _test(self, name: str, element: bytes, family: Family) -> bool | None:
        """Return whether an element is in a set; None if the kernel refused the question."""
        key = (name, element)
        if key not in self._found:
            body = string(_SET_NAME, name) + nested(_DATA, element)
            try:
                self._get(_TEST, body, _NFPROTO[family])
                self._found[key] = True
            except KernelError as error:
                self._found[key] = False if error.errno == _NOT_IN_SET else None
        return self._found[key]

    def _get(self, command: int, body: bytes, family: int) -> memoryview:
        if self._netlink is None:
            self._netlink = Nfnetlink()
        request = Message((_SUBSYSTEM << 8) | command, 0, _VERSION + body, family)
        return self._netlink.get(request)


_NFPROTO = {Family.IPV4: NFPROTO_IPV4, Family.IPV6: NFPROTO_IPV6}


def _element(name: str, kind: str, flags: int, packet: HookPacket) -> bytes | Match:
    """Pack the element of a set that a packet is; without one, return whether it is in the set."""
    method, _, fields = kind.partition(":")
    packs = [_FIELDS.get(field) for field in fields.split(",")]
    if kind == "bitmap:port":  # the only type whose elements have a port and no protocol
        packs = [_port_alone]
    if method not in ("hash", "bitmap") or None in packs:
        return Match(None, doubt(DoubtKind.UNREADABLE, f"ipset {name} of type {kind}"))
    element = b""
    for place, pack in enumerate(filter(None, packs), 1):
        packed = pack(packet, bool(flags & (1 << place)), place)
        if isinstance(packed, Match):
            return packed
        element += packed
    return element


def _inverted(value: bool, flags: int) -> Match:
    return YES if value != bool(flags & _INVERTED) else NO


def _address(packet: HookPacket, is_source: bool, place: int) -> bytes | Match:
    address: Address | None = packet.source if is_source else packet.destination
    if address is None:
        return Match(None, ANY_CLIENT)
    kind = 1 if packet.family is Family.IPV4 else 2
    packed = attribute(kind | _NET_BYTEORDER, address)
    return nested(_IP if place == 1 else _IP2, packed)


def _port(packet: HookPacket, is_source: bool, _: int) -> bytes | Match:
    port = packet.source_port if is_source else packet.port
    protocol = attribute(_PROTO, bytes((packet.protocol,)))
    return attribute(_PORT | _NET_BYTEORDER, struct.pack(">H", port)) + protocol


def _port_alone(packet: HookPacket, is_source: bool, _: int) -> bytes | Match:
    port = packet.source_port if is_source else packet.port
    return attribute(_PORT | _NET_BYTEORDER, struct.pack(">H", port))


def _interface(packet: HookPacket, is_source: bool, _: int) -> bytes | Match:
    name = packet.in_interface if is_source else packet.out_interface
    if name is None:
        return Match(None, ANY_INTERFACE)
    # An element always has an interface.
    return string(_IFACE, name) if name else NO


def _mark(packet: HookPacket, _is_source: bool, _: int) -> bytes | Match:
    if not packet.mark.complete:
        return Match(None, packet.mark.doubts)
    return attribute(_MARK | _NET_BYTEORDER, packet.mark.data()[::-1])


_FIELDS: Mapping[str, Pack] = {
    "ip": _address,
    "net": _address,
    "port": _port,
    "iface": _interface,
    "mark": _mark,
}
