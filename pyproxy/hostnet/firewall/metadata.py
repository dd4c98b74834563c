"""Values of meta, conntrack and fib expressions for a packet.

Facts: net/netfilter/nft_meta.c, nft_ct.c and nft_fib.c. A value of None makes the rule not match,
as the kernel does where a packet has no such value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyproxy.hostnet.firewall.bits import Bits, DoubtKind, doubt, known, number, unknown
from pyproxy.hostnet.firewall.changes import is_loopback
from pyproxy.hostnet.firewall.hook_packet import (
    ANY_CLIENT,
    ANY_INTERFACE,
    ANY_PROCESS,
    LENGTH,
    Connection,
    HookPacket,
    Tuple,
)
from pyproxy.model.address import Address, Family

_ETHERTYPE = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
_NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_RTN_UNICAST, _RTN_LOCAL, _RTN_BROADCAST, _RTN_MULTICAST = 1, 2, 3, 5
_CHANCE = doubt(DoubtKind.CHANCE, "a random number")


def meta(key: int, packet: HookPacket) -> Bits | None:
    """Return the value of a meta key."""
    if key in _META:
        return _META[key](packet)
    return unknown(_META_SIZES.get(key, 4), doubt(DoubtKind.UNREADABLE, f"meta key {key}"))


def _name(name: str | None) -> Bits:
    if name is None:
        return unknown(16, ANY_INTERFACE)
    return known(name.encode().ljust(16, b"\0"))


def _index(name: str | None, packet: HookPacket) -> Bits | None:
    if name is None:
        return unknown(4, ANY_INTERFACE)
    if not name:
        return number(0)
    index = packet.host.indexes.get(name)
    return number(index) if index else unknown(4, ANY_INTERFACE)


def _group(name: str | None, packet: HookPacket) -> Bits:
    if name is None:
        return unknown(4, ANY_INTERFACE)
    return number(packet.host.groups.get(name, 0))


def _kind(name: str | None) -> Bits | None:
    if name == "":
        return None
    return (
        unknown(2, ANY_INTERFACE)
        if name is None
        else number(_ARPHRD_LOOPBACK if name == "lo" else _ARPHRD_ETHER, 2)
    )


def _process(packet: HookPacket) -> Bits | None:
    # Without a socket the rule does not match; packets of others have none.
    return unknown(4, ANY_PROCESS) if packet.from_process else None


_META: Mapping[int, Callable[[HookPacket], Bits | None]] = {
    0: lambda _: unknown(4, LENGTH),
    1: lambda p: number(_ETHERTYPE[p.family], 2, "big"),
    2: lambda _: number(0),
    3: lambda p: p.mark,
    4: lambda p: _index(p.in_interface, p),
    5: lambda p: _index(p.out_interface, p),
    6: lambda p: _name(p.in_interface),
    7: lambda p: _name(p.out_interface),
    8: lambda p: _kind(p.in_interface),
    9: lambda p: _kind(p.out_interface),
    10: _process,
    11: _process,
    12: lambda _: number(0, 1),
    13: lambda _: number(0),
    14: lambda _: number(0),
    15: lambda p: number(_NFPROTO[p.family], 1),
    16: lambda p: number(p.protocol, 1),
    17: lambda p: _name(p.bridge_in),
    18: lambda p: _name(p.bridge_out),
    # PACKET_HOST; what this node sends has it too until a device sends it.
    19: lambda _: number(0, 1),
    20: lambda _: unknown(4, _CHANCE),
    21: lambda p: _group(p.in_interface, p),
    22: lambda p: _group(p.out_interface, p),
    23: _process,
    24: lambda _: unknown(4, _CHANCE),
    25: lambda _: number(0, 1),
    33: lambda _: number(0),
    34: lambda _: _name(""),
}
_META_SIZES = {26: 16, 27: 16, 28: 2, 29: 2, 30: 8, 31: 1, 32: 4}

_STATE, _DIRECTION, _STATUS, _MARK, _HELPER, _LABELS, _ZONE = 0, 1, 2, 3, 6, 13, 17
_L3, _PROTOCOL = 7, 10
_SIZES = {4: 4, 5: 4, _HELPER: 16, _LABELS: 16, 14: 8, 15: 8, 16: 8, _ZONE: 2, 18: 4, 23: 4}
_COUNTS = (14, 15, 16)
# Keys of tuples: (is it the source, is it a port).
_TUPLE_KEYS = {
    8: (True, False),
    9: (False, False),
    11: (True, True),
    12: (False, True),
    19: (True, False),
    20: (False, False),
    21: (True, False),
    22: (False, False),
}


def conntrack(key: int, direction: int | None, packet: HookPacket) -> Bits | None:
    """Return the value of a ct key, of a direction for addresses and ports."""
    if key == _STATE:
        return number(packet.ct_state())
    entry = packet.connection
    if entry is None:
        return None
    if key in _TUPLE_KEYS:
        return _tuple_value(key, direction, entry, packet.family)
    values = {
        _DIRECTION: number(int(entry.is_reply), 1),
        _STATUS: number(entry.status),
        _MARK: entry.mark,
        _L3: number(_NFPROTO[packet.family], 1),
        _PROTOCOL: number(packet.protocol, 1),
        _HELPER: None,
        _LABELS: known(bytes(16)),
        _ZONE: number(0, 2),
    }
    if key in values:
        return values[key]
    if key in _COUNTS:
        return unknown(8, doubt(DoubtKind.RATE, "the connection's counters"))
    return unknown(_SIZES.get(key, 4), doubt(DoubtKind.UNREADABLE, f"ct key {key}"))


def _tuple_value(key: int, direction: int | None, entry: Connection, family: Family) -> Bits | None:
    is_source, is_port = _TUPLE_KEYS[key]
    tuple_: Tuple = entry.reply if direction == 1 else entry.original
    if is_port:
        return number(tuple_.source_port if is_source else tuple_.port, 2, "big")
    # The keys from 19 on are of one family each.
    if key >= 19 and (family is Family.IPV4) != (key < 21):
        return None
    address = tuple_.source if is_source else tuple_.destination
    return known(address) if address is not None else unknown(family.bits // 8, ANY_CLIENT)


_OIF, _OIFNAME, _ADDRTYPE = 1, 2, 3
_SADDR, _IIF, _OIF_FLAG, _PRESENT = 1 << 0, 1 << 3, 1 << 4, 1 << 5
_ROUTE = doubt(DoubtKind.UNREADABLE, "the route to the destination")


def address_type(address: Address | None, packet: HookPacket) -> int | None:
    """Return the kernel's type of a route to an address; None if the address is unknown."""
    if address is None:
        return None
    if address in packet.host.local or is_loopback(address):
        return _RTN_LOCAL
    if address == b"\xff" * 4:
        return _RTN_BROADCAST
    if address[0] == 0xFF or (len(address) == 4 and 224 <= address[0] < 240):
        return _RTN_MULTICAST
    return _RTN_UNICAST


def fib(result: int, flags: int, packet: HookPacket) -> Bits:
    """Return the result of a route lookup.

    The route to the destination is taken to be by the interface of the path: it is checked
    elsewhere. An address of this node has no output interface.
    """
    of_source = bool(flags & _SADDR)
    address = packet.source if of_source else packet.destination
    if result == _ADDRTYPE:
        return _type(address, flags, packet)
    if not of_source:
        return _way_on(result, flags, packet)
    interface, received_by = packet.back_interface, packet.in_interface
    elsewhere = interface == "" or (flags & _IIF and interface != received_by)
    if received_by and elsewhere:
        return _no_route(result, flags)
    return _by_interface(interface, result, flags, packet)


def _type(address: Address | None, flags: int, packet: HookPacket) -> Bits:
    kind = address_type(address, packet)
    if kind is None:
        # No address of another host is this node's own.
        return number(_RTN_UNICAST)
    if kind != _RTN_LOCAL or address is None or not flags & (_IIF | _OIF_FLAG):
        return number(kind)
    # An address of this node is local at its own interface alone.
    interface = packet.in_interface if flags & _IIF else packet.out_interface
    owner = "lo" if is_loopback(address) else packet.host.owners.get(address)
    if interface is None or owner is None:
        return unknown(4, ANY_INTERFACE)
    return number(kind if interface in ("", owner) else _RTN_UNICAST)


def _way_on(result: int, flags: int, packet: HookPacket) -> Bits:
    # The kernel looks up no route of what it received over lo.
    over_lo = packet.in_interface == "lo"
    if address_type(packet.destination, packet) == _RTN_LOCAL and not over_lo:
        return _no_route(result, flags)
    interface = "lo" if over_lo else packet.out_interface or packet.way_on
    if flags & _IIF and interface and packet.in_interface and interface != packet.in_interface:
        return _no_route(result, flags)
    if interface is None and not flags & _PRESENT:
        return unknown(_size(result), _ROUTE)
    return _by_interface(interface, result, flags, packet)


def _by_interface(interface: str | None, result: int, flags: int, packet: HookPacket) -> Bits:
    if flags & _PRESENT:
        return number(1, 1)
    if result == _OIFNAME:
        return _name(interface)
    found = _index(interface, packet)
    return found if found is not None else number(0)


def _no_route(result: int, flags: int) -> Bits:
    return known(bytes(1 if flags & _PRESENT else _size(result)))


def _size(result: int) -> int:
    return 16 if result == _OIFNAME else 4
