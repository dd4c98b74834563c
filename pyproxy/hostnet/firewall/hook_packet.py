"""A packet at a hook of netfilter: its headers, metadata and conntrack entry.

Facts: include/uapi/linux/ip.h, ipv6.h, tcp.h, and net/netfilter/nf_conntrack_common.h. A client's
address may be unknown. Fields that no program chooses on purpose have the values of a usual packet:
no IP options, TTL 63, and for the first packet of a TCP connection a SYN.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from pyproxy.hostnet.firewall.bits import (
    Bits,
    DoubtKind,
    Doubts,
    concatenate,
    doubt,
    known,
    number,
    unknown,
)
from pyproxy.model.address import Address, Family, Port

CLIENT_PORT = Port(45_678)
"""The client's port: one of those that kernels choose for outgoing connections."""

ANY_CLIENT = doubt(DoubtKind.CLIENT, "the client's address")
ANY_INTERFACE = doubt(DoubtKind.CLIENT, "the interface")
LENGTH = doubt(DoubtKind.CLIENT, "the packet's length")
ANY_DISTANCE = doubt(DoubtKind.CLIENT, "the sender's TTL")
ANY_PROCESS = doubt(DoubtKind.CLIENT, "the sending process")

TCP, UDP, SCTP = 6, 17, 132

STATE_INVALID, STATE_ESTABLISHED, STATE_RELATED, STATE_NEW = 1 << 0, 1 << 1, 1 << 2, 1 << 3
STATE_UNTRACKED = 1 << 6
STATUS_SEEN_REPLY, STATUS_CONFIRMED = 1 << 1, 1 << 3
STATUS_SNAT, STATUS_DNAT, STATUS_SNAT_DONE, STATUS_DNAT_DONE = 1 << 4, 1 << 5, 1 << 7, 1 << 8

_SYN, _SYN_ACK, _ACK = 0x02, 0x12, 0x10
_ORIGINAL, _REPLY = 0, 1


class Hook(enum.IntEnum):
    """A hook of the IP families, by its number in the kernel; INGRESS and EGRESS of a device."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4
    INGRESS = 5
    EGRESS = 6


class Tuple(msgspec.Struct, frozen=True):
    """Addresses and ports of one direction of a connection."""

    source: Address | None
    destination: Address | None
    source_port: int
    port: int


class Connection(msgspec.Struct, frozen=True):
    """A packet's conntrack entry: tuples as the kernel has them after all translations so far."""

    original: Tuple
    reply: Tuple
    state: int = STATE_NEW
    status: int = 0
    is_reply: bool = False
    mark: Bits = number(0)


class Match(msgspec.Struct, frozen=True):
    """Whether a test of a packet is true; None with doubts if it is undecided."""

    value: bool | None
    doubts: Doubts = ()


YES, NO = Match(True), Match(False)


class Host(msgspec.Struct, frozen=True, eq=False):
    """This node, as rules test it: indexes and groups of its interfaces, its own addresses.

    `owners` are the interfaces of its addresses.

    `bridged` are the families whose packets meet the hooks of IP while a bridge forwards them.
    `sets` tests the match `set` of iptables; without it the match is undecided.
    """

    indexes: Mapping[str, int] = {}
    local: frozenset[Address] = frozenset()
    bridged: frozenset[Family] = frozenset()
    sets: Callable[[bytes, HookPacket], Match] | None = None
    groups: Mapping[str, int] = {}
    owners: Mapping[Address, str] = {}


class HookPacket(msgspec.Struct, frozen=True):
    """A packet at a hook. `source` is None for any client, an interface None for any.

    An interface is empty where there is none: packets that this node sends have no input interface.
    `way_back` is the interface of the route to the source, empty without a route, None if that is
    the input interface. `way_on` is the interface of the route to the destination before the kernel
    has routed it, None if it is unknown. `ttl` is one byte.
    `own_mark` are the bits of the mark that pyproxy set and still needs, in host order.
    `connection` is None before conntrack has seen the packet. `bridge_in` and `bridge_out` are the
    ports of the bridge that it crosses. `from_process` says that a process of this node sent it.
    """

    family: Family
    protocol: int
    source: Address | None
    destination: Address | None
    source_port: int
    port: int
    hook: Hook
    host: Host = Host()
    in_interface: str | None = ""
    out_interface: str | None = ""
    bridge_in: str = ""
    bridge_out: str = ""
    way_back: str | None = None
    way_on: str | None = None
    ttl: Bits = known(b"\x3f")
    mark: Bits = number(0)
    own_mark: int = 0
    connection: Connection | None = None
    is_reply: bool = False
    is_first: bool = True
    from_process: bool = False

    @property
    def back_interface(self) -> str | None:
        """The interface of the route to the source."""
        return self.in_interface if self.way_back is None else self.way_back

    def with_source_translated(self) -> HookPacket:
        """Return the packet of a connection whose source another rule translates."""
        entry = self.connection
        if entry is None:
            return self
        status = entry.status | STATUS_SNAT | STATUS_SNAT_DONE
        return replace(self, connection=replace(entry, status=status))

    @property
    def is_new(self) -> bool:
        """Whether it is the first packet of a connection, which alone meets nat chains."""
        return self.is_first and not self.is_reply

    @property
    def tcp_flags(self) -> int:
        """The flags of its TCP header."""
        if self.is_first:
            return _SYN_ACK if self.is_reply else _SYN
        return _ACK

    def ct_state(self) -> int:
        """Return the state bit that rules test; netfilter's is INVALID where there is no entry."""
        return self.connection.state if self.connection else STATE_INVALID

    def network_header(self, offset: int, size: int) -> Bits:
        """Return bytes of its IP header."""
        source = _address(self.source, self.family)
        destination = _address(self.destination, self.family)
        return _cut(
            _network_header(self.family, self.protocol, self.ttl, source, destination), offset, size
        )

    def transport_header(self, offset: int, size: int) -> Bits:
        """Return bytes of its transport header."""
        header = _transport_header(self.protocol, self.source_port, self.port, self.tcp_flags)
        return _cut(header, offset, size)


def _address(address: Address | None, family: Family) -> Bits:
    return known(address) if address is not None else unknown(family.bits // 8, ANY_CLIENT)


def _cut(header: tuple[Bits, ...], offset: int, size: int) -> Bits:
    """Return bytes of a header, with the doubts of the parts that these are in alone."""
    found = []
    end, start = offset + size, 0
    for part in (*header, unknown(end, _CONTENTS)):
        first, last = max(offset, start), min(end, start + part.size)
        if first < last:
            found.append(part.part(first - start, last - first))
        start += part.size
    return concatenate(*found)


_CONTENTS = doubt(DoubtKind.UNREADABLE, "the packet's contents")


@lru_cache(256)
def _network_header(
    family: Family, protocol: int, ttl: Bits, source: Bits, destination: Bits
) -> tuple[Bits, ...]:
    if family is Family.IPV4:
        # Version and header length, TOS 0; total length and identification; do not fragment, TTL.
        start = (known(struct.pack(">BB", 0x45, 0)), unknown(2, LENGTH), unknown(2, _CONTENTS))
        middle = (known(struct.pack(">H", 0x4000)), ttl, known(bytes((protocol,))))
        return (*start, *middle, unknown(2, _CONTENTS), source, destination)
    # Version and traffic class; flow label; length of the payload; protocol and hop limit.
    start = (known(b"\x60\0"), unknown(2, _CONTENTS), unknown(2, LENGTH))
    return (*start, known(bytes((protocol,))), ttl, source, destination)


@lru_cache(256)
def _transport_header(protocol: int, source_port: int, port: int, flags: int) -> tuple[Bits, ...]:
    ports = known(struct.pack(">HH", source_port, port))
    if protocol == TCP:
        rest = known(struct.pack(">BB", 0xA0, flags))
        return (ports, unknown(8, _CONTENTS), rest, unknown(6, _CONTENTS))
    if protocol == UDP:
        return (ports, unknown(2, LENGTH), unknown(2, _CONTENTS))
    # SCTP: verification tag and checksum, then the first chunk, which is INIT, INIT ACK or DATA.
    chunk = {_SYN: 1, _SYN_ACK: 2, _ACK: 0}[flags]
    return (ports, unknown(8, _CONTENTS), known(bytes((chunk,))), unknown(3, _CONTENTS))
