"""Matches of iptables, from the bytes that the kernel keeps, in legacy tables and in nf_tables.

Facts: include/uapi/linux/netfilter/xt_*.h and net/netfilter/xt_*.c. Numbers are in host order, but
ports and addresses of some matches in network order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from pyproxy.hostnet.firewall.bits import Bits, DoubtKind, Doubts, doubt, is_between
from pyproxy.hostnet.firewall.hook_packet import (
    ANY_CLIENT,
    ANY_INTERFACE,
    ANY_PROCESS,
    NO,
    SCTP,
    STATE_UNTRACKED,
    STATUS_DNAT,
    STATUS_SNAT,
    TCP,
    UDP,
    YES,
    HookPacket,
    Match,
)
from pyproxy.hostnet.firewall.metadata import address_type
from pyproxy.model.address import Address, Family

_Decode = Callable[[int, bytes, HookPacket], Match]


def match(name: str, revision: int, info: bytes, packet: HookPacket) -> Match:
    """Return whether a match of this name and revision matches a packet."""
    run = _MATCHES.get(name)
    if run is not None:
        try:
            return run(revision, info, packet)
        except (struct.error, IndexError):
            pass  # a revision with another layout
    return Match(None, doubt(DoubtKind.UNREADABLE, f"match {name}"))


def _result(value: bool | None, inverted: bool | int, doubts: Doubts) -> Match:
    if value is None:
        return Match(None, doubts)
    return YES if value != bool(inverted) else NO


def all_of(*parts: Match) -> Match:
    """Return whether all parts match."""
    doubts: Doubts = ()
    for part in parts:
        if part.value is False:
            return NO
        doubts = (*doubts, *part.doubts)
    return Match(None, tuple(dict.fromkeys(doubts))) if doubts else YES


def address_in(address: Address | None, network: bytes, mask: bytes, inverted: bool | int) -> Match:
    """Return whether an address is in a network given by its mask."""
    if not any(mask):
        return _result(True, inverted, ())
    if address is None:
        return Match(None, ANY_CLIENT)
    size = len(address)
    masked = bytes(a & m for a, m in zip(address, mask[:size], strict=True))
    return _result(masked == network[:size], inverted, ())


def interface_is(name: str | None, wanted: bytes, mask: bytes, inverted: bool | int) -> Match:
    """Return whether an interface has a name, of which `mask` selects the bytes compared."""
    if not any(mask):
        return _result(True, inverted, ())
    if name is None:
        return Match(None, ANY_INTERFACE)
    padded = name.encode().ljust(16, b"\0")
    same = all((a ^ b) & m == 0 for a, b, m in zip(padded, wanted, mask, strict=True))
    return _result(same, inverted, ())


def _comment(_revision: int, _info: bytes, _packet: HookPacket) -> Match:
    return YES


def _mask(value: Bits, wanted: int, mask: int, inverted: int) -> Match:
    # Marks are in host order, which is little endian.
    bits = int.from_bytes(mask.to_bytes(4, "little"), "big")
    other = int.from_bytes(wanted.to_bytes(4, "little"), "big")
    if (value.value ^ other) & value.known & bits or other & ~bits:
        return _result(False, inverted, ())
    complete = value.known & bits == bits
    return _result(True if complete else None, inverted, value.doubts)


def _mark(_revision: int, info: bytes, packet: HookPacket) -> Match:
    return _mask(packet.mark, *struct.unpack_from("=IIB", info))


def _connmark(_revision: int, info: bytes, packet: HookPacket) -> Match:
    if packet.connection is None:
        return NO
    return _mask(packet.connection.mark, *struct.unpack_from("=IIB", info))


def _ports(packet: HookPacket, info: bytes, inverted: int) -> Match:
    source_low, source_high, low, high = struct.unpack_from("=HHHH", info)
    return all_of(
        _result(source_low <= packet.source_port <= source_high, inverted & 1, ()),
        _result(low <= packet.port <= high, inverted & 2, ()),
    )


def _tcp(_revision: int, info: bytes, packet: HookPacket) -> Match:
    if packet.protocol != TCP:
        return NO
    option, mask, flags, inverted = struct.unpack_from("=BBBB", info, 8)
    options = Match(None, doubt(DoubtKind.UNREADABLE, "a TCP option")) if option else YES
    tcp_flags = _result(packet.tcp_flags & mask == flags, inverted & 4, ()) if mask else YES
    return all_of(_ports(packet, info, inverted), tcp_flags, options)


def _udp(_revision: int, info: bytes, packet: HookPacket) -> Match:
    return _ports(packet, info, info[8]) if packet.protocol == UDP else NO


def _sctp(_revision: int, info: bytes, packet: HookPacket) -> Match:
    if packet.protocol != SCTP:
        return NO
    # The flags of struct xt_sctp_info are at 60, and inverted ones at 64: 1 source, 2 destination
    # port, 4 chunk types. The ports are destination first.
    low, high, source_low, source_high = struct.unpack_from("=HHHH", info)
    flags, inverted = struct.unpack_from("=II", info, 60)
    source = source_low <= packet.source_port <= source_high
    return all_of(
        _result(source, inverted & 1, ()) if flags & 1 else YES,
        _result(low <= packet.port <= high, inverted & 2, ()) if flags & 2 else YES,
        Match(None, doubt(DoubtKind.UNREADABLE, "SCTP chunk types")) if flags & 4 else YES,
    )


def _other_protocol(_revision: int, _info: bytes, _packet: HookPacket) -> Match:
    return NO


def _multiport(revision: int, info: bytes, packet: HookPacket) -> Match:
    if packet.protocol not in (TCP, UDP, SCTP):
        return NO
    kind, count = info[0], info[1]
    ports = struct.unpack_from("=15H", info, 2)
    ranges, inverted = (info[32:47], info[47]) if revision else (bytes(15), 0)
    tested = {0: (packet.source_port,), 1: (packet.port,)}.get(
        kind, (packet.source_port, packet.port)
    )
    found, index = False, 0
    while index < count:
        low = high = ports[index]
        # A flagged port is the start of a range, whose end is the next one.
        if ranges[index]:
            index += 1
            high = ports[index]
        found |= any(low <= port <= high for port in tested)
        index += 1
    return _result(found, inverted, ())


_STATE_SNAT, _STATE_DNAT, _STATE_UNTRACKED = 1 << 6, 1 << 7, 1 << 8


def _state(_revision: int, info: bytes, packet: HookPacket) -> Match:
    (mask,) = struct.unpack_from("=I", info)
    state = packet.ct_state()
    # xt_state's bit for untracked packets is that of nf_tables.
    return YES if mask & state else NO


def _conntrack(revision: int, info: bytes, packet: HookPacket) -> Match:
    flags, inverted = struct.unpack_from("=HH", info, 146)
    if revision < 2:
        state_mask, status_mask = info[150], info[151]
    else:
        state_mask, status_mask = struct.unpack_from("=HH", info, 150)
    parts = [_state_part(state_mask, inverted & 1, packet)] if flags & 1 else []
    entry = packet.connection
    if entry is None:
        # Without an entry the kernel tests the state alone.
        return all_of(*parts) if parts else _result(False, flags & 1, ())
    for bit, tuple_, is_source, at in (
        (1 << 2, entry.original, True, 0),
        (1 << 3, entry.original, False, 32),
        (1 << 4, entry.reply, True, 64),
        (1 << 5, entry.reply, False, 96),
    ):
        if flags & bit:
            address = tuple_.source if is_source else tuple_.destination
            network, mask = info[at : at + 16], info[at + 16 : at + 32]
            parts.append(address_in(address, network, mask, inverted & bit))
    (protocol,) = struct.unpack_from("=H", info, 136)
    if flags & (1 << 1):
        parts.append(_result(packet.protocol == protocol, inverted & (1 << 1), ()))
    if flags & (1 << 6):
        parts.append(_result(bool(entry.status & status_mask), inverted & (1 << 6), ()))
    if flags & (1 << 12):
        # The option `--ctdir ORIGINAL` sets no invert flag, REPLY does.
        parts.append(_result(not entry.is_reply, inverted & (1 << 12), ()))
    if flags & (1 << 7):
        parts.append(Match(None, doubt(DoubtKind.RATE, "the connection's age")))
    values = (
        entry.original.source_port,
        entry.original.port,
        entry.reply.source_port,
        entry.reply.port,
    )
    for index, value in enumerate(values):
        bit = 1 << (8 + index)
        if flags & bit:
            low, high = _connection_ports(revision, info, index)
            parts.append(_result(low <= value <= high, inverted & bit, ()))
    return all_of(*parts)


def _connection_ports(revision: int, info: bytes, index: int) -> tuple[int, int]:
    if revision < 3:
        (port,) = struct.unpack_from(">H", info, 138 + 2 * index)
        return port, port
    (low,) = struct.unpack_from("=H", info, 138 + 2 * index)
    (high,) = struct.unpack_from("=H", info, 154 + 2 * index)
    return low, high


def _state_part(mask: int, inverted: int, packet: HookPacket) -> Match:
    state = packet.ct_state()
    if state == STATE_UNTRACKED:
        state = _STATE_UNTRACKED
    elif packet.connection:
        state |= _STATE_SNAT if packet.connection.status & STATUS_SNAT else 0
        state |= _STATE_DNAT if packet.connection.status & STATUS_DNAT else 0
    return _result(bool(mask & state), inverted, ())


def _addrtype(revision: int, info: bytes, packet: HookPacket) -> Match:
    if revision:
        source_mask, mask, flags = struct.unpack_from("=HHI", info)
        source_inverted, inverted = flags & 1, flags & 2
    else:
        source_mask, mask, source_inverted, inverted = struct.unpack_from("=HHII", info)
    return all_of(
        _type_in(packet.source, source_mask, source_inverted, packet) if source_mask else YES,
        _type_in(packet.destination, mask, inverted, packet) if mask else YES,
    )


_UNICAST, _MULTICAST = 1 << 1, 1 << 5


def _type_in(address: Address | None, mask: int, inverted: int, packet: HookPacket) -> Match:
    kind = address_type(address, packet)
    # A client of another host has no address of this node.
    kinds = 1 << (kind if kind is not None else 1)
    if packet.family is Family.IPV4:
        return _result(bool(mask & kinds), inverted, ())
    # For IPv6 all types must hold, and this node's own addresses are unicast too.
    kinds |= 0 if kinds & _MULTICAST else _UNICAST
    return _result(not mask & ~kinds, inverted, ())


def _iprange(_revision: int, info: bytes, packet: HookPacket) -> Match:
    flags = info[64]
    size = packet.family.bits // 8
    parts = []
    for bit, address, at in ((1, packet.source, 0), (2, packet.destination, 32)):
        if flags & bit:
            low, high = info[at : at + size], info[at + 16 : at + 16 + size]
            inside = low <= address <= high if address is not None else None
            parts.append(_result(inside, flags & (bit << 4), ANY_CLIENT))
    return all_of(*parts)


def _physdev(_revision: int, info: bytes, packet: HookPacket) -> Match:
    inverted, tested = info[64], info[65]
    if not packet.bridge_in and not packet.bridge_out:
        # Packets that cross no bridge match negated tests alone.
        return NO if tested & ~inverted & 0x1F else YES
    parts = []
    if tested & 1:
        parts.append(interface_is(packet.bridge_in, info[:16], info[16:32], inverted & 1))
    if tested & 2:
        parts.append(interface_is(packet.bridge_out, info[32:48], info[48:64], inverted & 2))
    if tested & 4:
        bridged = bool(packet.bridge_in and packet.bridge_out)
        parts.append(_result(bridged, inverted & 4, ()))
    if tested & 8:
        parts.append(_result(bool(packet.bridge_in), inverted & 8, ()))
    if tested & 16:
        parts.append(_result(bool(packet.bridge_out), inverted & 16, ()))
    return all_of(*parts)


def _rpfilter(_revision: int, info: bytes, packet: HookPacket) -> Match:
    # The flag 1 asks for any route, otherwise for one by the input interface; 8 inverts.
    back = packet.back_interface
    return _result(bool(back) if info[0] & 1 else back == packet.in_interface, info[0] & 8, ())


def _owner(_revision: int, info: bytes, packet: HookPacket) -> Match:
    tested, inverted = info[16], info[17]
    if packet.from_process:
        return Match(None, ANY_PROCESS) if tested & ~4 else _result(True, inverted & 4, ())
    # A packet without a socket matches negated tests alone.
    return NO if tested ^ inverted else YES


def _pkttype(_revision: int, info: bytes, _packet: HookPacket) -> Match:
    kind, inverted = struct.unpack_from("=ii", info)
    return _result(kind == 0, inverted, ())


def _policy(_revision: int, info: bytes, _packet: HookPacket) -> Match:
    # The flags follow four elements of 76 bytes.
    (flags,) = struct.unpack_from("=H", info, 304)
    # XT_POLICY_MATCH_NONE matches packets that IPsec does not transform, as these are.
    return YES if flags & 4 else NO


def _set(revision: int, info: bytes, packet: HookPacket) -> Match:
    if packet.host.sets is None or revision == 0:
        return Match(None, doubt(DoubtKind.UNREADABLE, "match set"))
    return packet.host.sets(info, packet)


def _ttl(_revision: int, info: bytes, packet: HookPacket) -> Match:
    mode, limit = info[0], info[1]
    # Equal, not equal, less than the limit, greater.
    low, high = ((limit, limit), (limit, limit), (0, limit - 1), (limit + 1, 255))[mode]
    return _result(is_between(packet.ttl, low, high), mode == 1, packet.ttl.doubts)


def _tos(_revision: int, info: bytes, _packet: HookPacket) -> Match:
    # A usual packet's TOS is 0, whatever the mask.
    value, inverted = info[1], info[2]
    return _result(value == 0, inverted, ())


def _dscp(_revision: int, info: bytes, _packet: HookPacket) -> Match:
    return _result(info[0] == 0, info[1], ())


def _statistic(_revision: int, info: bytes, _packet: HookPacket) -> Match:
    mode, inverted, probability = struct.unpack_from("=HHI", info)
    if mode == 0 and probability in (0, 0x80000000):
        return _result(probability > 0, inverted, ())
    return Match(None, doubt(DoubtKind.CHANCE, "statistic"))


def _undecided(kind: DoubtKind, what: str) -> _Decode:
    found = Match(None, doubt(kind, what))
    return lambda _revision, _info, _packet: found


_MATCHES: Mapping[str, _Decode] = {
    "addrtype": _addrtype,
    "ah": _other_protocol,
    "comment": _comment,
    "connbytes": _undecided(DoubtKind.RATE, "the connection's counters"),
    "connlimit": _undecided(DoubtKind.RATE, "a limit of connections"),
    "connmark": _connmark,
    "conntrack": _conntrack,
    "dccp": _other_protocol,
    "dscp": _dscp,
    "esp": _other_protocol,
    "hl": _ttl,
    "hashlimit": _undecided(DoubtKind.RATE, "a rate limit"),
    "icmp": _other_protocol,
    "icmp6": _other_protocol,
    "iprange": _iprange,
    "length": _undecided(DoubtKind.CLIENT, "the packet's length"),
    "limit": _undecided(DoubtKind.RATE, "a rate limit"),
    "mac": _undecided(DoubtKind.CLIENT, "the client's link address"),
    "mark": _mark,
    "multiport": _multiport,
    "owner": _owner,
    "physdev": _physdev,
    "pkttype": _pkttype,
    "policy": _policy,
    "quota": _undecided(DoubtKind.RATE, "a quota"),
    "recent": _undecided(DoubtKind.RATE, "the client's earlier packets"),
    "rpfilter": _rpfilter,
    "sctp": _sctp,
    "set": _set,
    "socket": _other_protocol,
    "state": _state,
    "statistic": _statistic,
    "tcp": _tcp,
    "tos": _tos,
    "ttl": _ttl,
    "udp": _udp,
}
