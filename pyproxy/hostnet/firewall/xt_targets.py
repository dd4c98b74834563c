"""Targets of iptables, from the bytes that the kernel keeps.

Facts: include/uapi/linux/netfilter/xt_*.h and net/netfilter/xt_*.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from pyproxy.hostnet.firewall.bits import (
    Bits,
    DoubtKind,
    Doubts,
    below,
    doubt,
    known,
    mask_and_xor,
    unknown,
)
from pyproxy.hostnet.firewall.changes import OTHER_ZONE, foreign_source, short_lived
from pyproxy.hostnet.firewall.hook_packet import Hook, HookPacket
from pyproxy.hostnet.firewall.verdicts import ACCEPT, DROP, Action, Verdict
from pyproxy.model.address import Address, address_text

_FEW_HOPS = 16
_RANGE = 36
"""Bytes of struct nf_nat_range, less of which are the older one of IPv4."""


class Target(msgspec.Struct, frozen=True):
    """The effect of a target; evaluation goes on with the next rule if there is no verdict."""

    packet: HookPacket
    verdict: Verdict | None = None
    untracked: bool = False
    changes: str = ""
    doubts: Doubts = ()


_GOES_ON = {
    "AUDIT", "CHECKSUM", "CLASSIFY", "CONNSECMARK", "DSCP", "ECN", "IDLETIMER", "LED", "LOG",
    "NFLOG", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE",
    "ULOG",
}  # fmt: skip
_ENDS = {
    "NFQUEUE": Verdict(Action.DIVERT, note="to a program's queue"),
    "QUEUE": Verdict(Action.DIVERT, note="to a program's queue"),
    "SYNPROXY": Verdict(Action.DIVERT, note="to SYNPROXY"),
    "TPROXY": Verdict(Action.DIVERT, note="to a transparent proxy"),
    "REJECT": Verdict(Action.REJECT),
}


def target(name: str, revision: int, info: bytes, packet: HookPacket) -> Target:
    """Return the effect of a target of this name and revision on a packet."""
    if name in _GOES_ON:
        return Target(packet)
    if name in _ENDS:
        return Target(packet, _ENDS[name])
    try:
        return _special(name, revision, info, packet)
    except struct.error:  # a revision with another layout
        return _unreadable(name, packet)


def _special(name: str, revision: int, info: bytes, packet: HookPacket) -> Target:
    run = _SPECIAL.get(name)
    return run(name, revision, info, packet) if run else _unreadable(name, packet)


def _translate(name: str, revision: int, info: bytes, packet: HookPacket) -> Target:
    if name == "NETMAP" and packet.hook in (Hook.POSTROUTING, Hook.INPUT):
        return _snat(name, revision, info, packet)
    note = _translation(name, revision, info, packet)
    return Target(packet, Verdict(Action.TRANSLATE, note=note))


def _mark(_name: str, _revision: int, info: bytes, packet: HookPacket) -> Target:
    mark, mask = struct.unpack_from("=II", info)
    return Target(replace(packet, mark=_set_mark(packet.mark, mark, mask)))


def _hash_mark(_name: str, _revision: int, info: bytes, packet: HookPacket) -> Target:
    # The end of struct xt_hmark_info: the modulus of the hash, and what is added to the rest.
    modulus, offset = struct.unpack_from("=II", info, 52)
    mark = below(modulus + offset, doubt(DoubtKind.CHANCE, "a hash"))
    return Target(replace(packet, mark=mark))


def _copy_mark(_name: str, _revision: int, info: bytes, packet: HookPacket) -> Target:
    return Target(_connmark(info, packet))


def _snat(_name: str, revision: int, info: bytes, packet: HookPacket) -> Target:
    address = _first_address(revision, info, packet)
    changes = foreign_source(address, packet) if address else ""
    return Target(packet.with_source_translated(), ACCEPT, changes=changes)


def _masquerade(_name: str, _revision: int, _info: bytes, packet: HookPacket) -> Target:
    return Target(packet.with_source_translated(), ACCEPT)


def _ttl(_name: str, _revision: int, info: bytes, packet: HookPacket) -> Target:
    mode, hops = info[0], info[1]
    ttl = known(bytes((hops,))) if mode == 0 else unknown(1, packet.ttl.doubts)
    # A usual rule adds or takes away a hop or two.
    changes = short_lived(ttl) if mode == 0 or (mode == 2 and hops > _FEW_HOPS) else ""
    return Target(replace(packet, ttl=ttl), changes=changes)


def _ct(name: str, _revision: int, info: bytes, packet: HookPacket) -> Target:
    # The kernel ignores it once conntrack has seen the packet.
    if packet.connection is not None:
        return Target(packet)
    flags, zone = (1, 0) if name == "NOTRACK" else struct.unpack_from("=HH", info)
    return Target(packet, untracked=bool(flags & 1), changes=OTHER_ZONE if zone else "")


_SPECIAL: Mapping[str, Callable[[str, int, bytes, HookPacket], Target]] = {
    "CONNMARK": _copy_mark,
    "CT": _ct,
    "DNAT": _translate,
    "HL": _ttl,
    "HMARK": _hash_mark,
    "MARK": _mark,
    "MASQUERADE": _masquerade,
    "NETMAP": _translate,
    "NOTRACK": _ct,
    "REDIRECT": _translate,
    "SNAT": _snat,
    "TTL": _ttl,
}


def _unreadable(name: str, packet: HookPacket) -> Target:
    # It may end the packet's way, or leave no verdict.
    unknown_end = Verdict(Action.DIVERT, note=f"to target {name}")
    return Target(packet, unknown_end, doubts=doubt(DoubtKind.UNREADABLE, f"target {name}"))


def _set_mark(before: Bits, mark: int, mask: int) -> Bits:
    # mark = (mark & ~mask) ^ value, in host order.
    keep, value = (
        int.from_bytes(n.to_bytes(4, "little"), "big") for n in (~mask & 0xFFFFFFFF, mark)
    )
    return mask_and_xor(before, keep, value)


def _connmark(info: bytes, packet: HookPacket) -> HookPacket:
    entry = packet.connection
    if entry is None:
        return packet
    mark, mask, nf_mask = struct.unpack_from("=III", info)
    mode = info[12] if len(info) < 24 else info[14]
    swapped = (int.from_bytes(n.to_bytes(4, "little"), "big") for n in (mask, nf_mask))
    connection_bits, packet_bits = swapped
    if mode == 0:
        return replace(packet, connection=replace(entry, mark=_set_mark(entry.mark, mark, mask)))
    if mode == 1:
        found = _copy(entry.mark, connection_bits, packet.mark, packet_bits)
        return replace(packet, connection=replace(entry, mark=found))
    return replace(packet, mark=_copy(packet.mark, packet_bits, entry.mark, connection_bits))


def _copy(before: Bits, cleared: int, other: Bits, used: int) -> Bits:
    """Return `(before & ~cleared) ^ (other & used)`."""
    kept, taken = mask_and_xor(before, ~cleared & 0xFFFFFFFF, 0), mask_and_xor(other, used, 0)
    bits = kept.known & taken.known
    return Bits((kept.value ^ taken.value) & bits, bits, 4, kept.doubts or taken.doubts)


def _translation(name: str, revision: int, info: bytes, packet: HookPacket) -> str:
    if name == "REDIRECT":
        return "to this node"
    address = _first_address(revision, info, packet)
    return f"to {address_text(address)}" if address else ""


def _first_address(revision: int, info: bytes, packet: HookPacket) -> Address | None:
    """Return the lowest address of a translation's range."""
    size = packet.family.bits // 8
    # nf_nat_range and range2 begin with flags and the lowest address in a union of 16 bytes;
    # IPv4's compatible range has a count before the flags, and addresses of 4 bytes.
    at = 8 if revision == 0 and size == 4 and len(info) < _RANGE else 4
    address = info[at : at + size]
    return Address(address) if len(address) == size else None


STANDARD = {-1: DROP, -2: ACCEPT, -4: Verdict(Action.DIVERT, note="to a program's queue")}
"""Verdicts of legacy tables: netfilter's own, negated, less one."""
