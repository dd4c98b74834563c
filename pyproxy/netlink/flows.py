"""Conntrack entries as ctnetlink writes them: read from a dump, and identified for a deletion.

Facts: include/uapi/linux/netfilter/nfnetlink_conntrack.h and net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import struct

import msgspec

from pyproxy.model.address import Family, Protocol
from pyproxy.netlink.attributes import NESTED, attribute, attributes, nested
from pyproxy.netlink.frames import HEADER, NLMSG_DONE, NLMSG_ERROR, read_messages
from pyproxy.netlink.kernel_errors import error_code, kernel_error, read_done
from pyproxy.netlink.nfnetlink import HEADER_SIZE

CTA_TUPLE_ORIG = 1
CTA_TUPLE_REPLY = 2
CTA_STATUS = 3
CTA_COUNTERS_ORIG = 9
CTA_COUNTERS_REPLY = 10
CTA_ID = 12
CTA_ZONE = 18
CTA_FILTER = 25
CTA_STATUS_MASK = 26
CTA_TUPLE_IP = 1
CTA_TUPLE_PROTO = 2
CTA_TUPLE_ZONE = 3
CTA_IP_V4_SRC = 1
CTA_IP_V4_DST = 2
CTA_IP_V6_SRC = 3
CTA_IP_V6_DST = 4
CTA_PROTO_NUM = 1
CTA_PROTO_SRC_PORT = 2
CTA_PROTO_DST_PORT = 3
CTA_COUNTERS_PACKETS = 1
CTA_COUNTERS_BYTES = 2

IPS_OFFLOAD = 1 << 14
"""The status of an entry that a flowtable has: its packets pass no hook beyond ingress.

From include/uapi/linux/netfilter/nf_conntrack_common.h. The kernel sets and clears it, and ignores
it in requests.
"""

_ADDRESS_SIZES = tuple(family.bits // 8 for family in Family)
_PORTS_V4 = 6
"""The size of an IPv4 address and a port."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The packets and bytes of an entry so far, in both directions, with the headers of IP.

    Both are 0 if the entry was made while `net.netfilter.nf_conntrack_acct` was off. `id` is the
    entry's: a later connection of the same addresses and ports has another.
    """

    id: int
    packets: int
    bytes: int


class Flow(msgspec.Struct, frozen=True, gc=False):
    """One conntrack entry, with the message that it was read from.

    `source` and `destination` are those of the client's packets. `reply_source` is that of the
    replies, so the endpoint if the destination was translated. Each is an address and a port,
    packed as in `model.address.Backend`.
    """

    protocol: Protocol
    source: bytes
    destination: bytes
    reply_source: bytes
    message: bytes = b""

    @property
    def family(self) -> Family:
        """The family of the flow's addresses."""
        return Family.IPV4 if len(self.destination) == _PORTS_V4 else Family.IPV6

    @property
    def reply_destination(self) -> bytes:
        """The destination of the replies: the client, or this node if it masquerades.

        Read from the message; without a message it is the source.
        """
        for kind, value in attributes(memoryview(self.message)[HEADER_SIZE:]):
            if kind == CTA_TUPLE_REPLY and (side := _side(value)):
                return side[2]
        return self.source

    @property
    def translated(self) -> bool:
        """Whether the destination was translated."""
        return self.reply_source != self.destination

    @property
    def zoned(self) -> bool:
        """Whether the entry is in a conntrack zone other than the default one."""
        for kind, value in attributes(memoryview(self.message)[HEADER_SIZE:]):
            # CTA_ZONE is the zone of both directions, CTA_TUPLE_ZONE that of one.
            if kind == CTA_ZONE:
                return True
            if kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY) and any(
                inner == CTA_TUPLE_ZONE for inner, _ in attributes(value)
            ):
                return True
        return False

    @property
    def offloaded(self) -> bool:
        """Whether a flowtable has the flow."""
        for kind, value in attributes(memoryview(self.message)[HEADER_SIZE:]):
            if kind == CTA_STATUS:
                return bool(int.from_bytes(value, "big") & IPS_OFFLOAD)
        return False

    @property
    def usage(self) -> Usage:
        """The entry's counters."""
        number = packets = octets = 0
        for kind, value in attributes(memoryview(self.message)[HEADER_SIZE:]):
            if kind == CTA_ID:
                number = int.from_bytes(value, "big")
            elif kind in (CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY):
                for inner, counted in attributes(value):
                    if inner == CTA_COUNTERS_PACKETS:
                        packets += int.from_bytes(counted, "big")
                    elif inner == CTA_COUNTERS_BYTES:
                        octets += int.from_bytes(counted, "big")
        return Usage(number, packets, octets)

    @property
    def handle(self) -> bytes:
        """The attributes that identify this entry, as the kernel wrote them.

        The id distinguishes it from a newer entry with the same tuple. Raises ValueError without
        an original tuple: the kernel would then delete the whole table.
        """
        parts, named = [], False
        for kind, value in attributes(memoryview(self.message)[HEADER_SIZE:]):
            if kind in (CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID):
                # `attributes` has removed the flag from the type.
                flag = NESTED if kind == CTA_TUPLE_ORIG else 0
                parts.append(attribute(kind | flag, bytes(value)))
                named |= kind == CTA_TUPLE_ORIG
        if not named:
            raise ValueError("a conntrack entry without its original tuple")
        return b"".join(parts)


class _Layout:
    """The layout of a message's two tuples, as every kernel writes them without a zone.

    Attribute headers and values alternate, so one unpacking and one comparison read an entry:
    five times as fast as a walk over its 14 attributes.
    """

    def __init__(self, family: Family) -> None:
        size = family.bits // 8
        one = f"12s{size}s4s{size}s8sB3x4s2s2x4s2s2x"
        self.unpack = struct.Struct(f"={HEADER_SIZE}x{one}{one}").unpack_from
        empty = bytes(size)
        sample = bytes(HEADER_SIZE) + b"".join(
            tuple_attribute(kind, Protocol.UDP, empty + b"\0\0", empty + b"\0\0")
            for kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)
        )
        self.size = len(sample)
        # Headers are the fields at even places, values those at odd places.
        self.headers = self.unpack(sample)[::2]


def tuple_attribute(kind: int, protocol: Protocol, source: bytes, destination: bytes) -> bytes:
    """Pack one direction of a flow; `kind` is CTA_TUPLE_ORIG or CTA_TUPLE_REPLY."""
    four = len(destination) == _PORTS_V4
    return nested(
        kind,
        nested(
            CTA_TUPLE_IP,
            attribute(CTA_IP_V4_SRC if four else CTA_IP_V6_SRC, source[:-2]),
            attribute(CTA_IP_V4_DST if four else CTA_IP_V6_DST, destination[:-2]),
        ),
        nested(
            CTA_TUPLE_PROTO,
            attribute(CTA_PROTO_NUM, bytes((protocol,))),
            attribute(CTA_PROTO_SRC_PORT, source[-2:]),
            attribute(CTA_PROTO_DST_PORT, destination[-2:]),
        ),
    )


_LAYOUTS = {family: _Layout(family) for family in Family}
_PROTOCOLS = {int(protocol): protocol for protocol in Protocol}


def read_flows(piece: bytes, family: Family) -> tuple[list[Flow], bool]:
    """Return the flows of one piece of a dump, and whether it is the last piece.

    Raises KernelError if the piece says that the dump failed.
    """
    layout = _LAYOUTS[family]
    flows: list[Flow] = []
    for kind, flags, _, _, view in read_messages(piece):
        if kind == NLMSG_DONE:
            if error := read_done(view, flags):
                raise kernel_error(error.errno, error.words or "listing conntrack entries")
            return flows, True
        if kind == NLMSG_ERROR:
            raise kernel_error(error_code(view), "listing conntrack entries")
        # A copy, because a view would keep the whole datagram in memory for one kept flow.
        message = bytes(view)
        flow = _regular(message, layout) or _irregular(message)
        if flow is not None:
            flows.append(flow)
    return flows, False


def read_entry(body: memoryview) -> Flow | None:
    """Read the reply to a request for one entry, which has no netlink header any more."""
    return _irregular(bytes(HEADER.size) + body)


def _regular(message: bytes, layout: _Layout) -> Flow | None:
    if len(message) < layout.size:
        return None
    fields = layout.unpack(message)
    if fields[::2] != layout.headers:
        return None
    source, target, number, source_port, target_port, backend, _, _, backend_port, _ = fields[1::2]
    protocol = _PROTOCOLS.get(number)
    if protocol is None:
        return None
    return Flow(
        protocol, source + source_port, target + target_port, backend + backend_port, message
    )


def _irregular(message: bytes) -> Flow | None:
    """Read a message of another layout; None unless it has ports and a known protocol."""
    sides: dict[int, tuple[int, bytes, bytes]] = {}
    for kind, value in attributes(memoryview(message)[HEADER_SIZE:]):
        if kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            side = _side(value)
            if side is None:
                return None
            sides[kind] = side
    if len(sides) < 2:
        return None
    number, source, destination = sides[CTA_TUPLE_ORIG]
    protocol = _PROTOCOLS.get(number)
    if protocol is None:
        return None
    return Flow(protocol, source, destination, sides[CTA_TUPLE_REPLY][1], message)


def _side(value: memoryview) -> tuple[int, bytes, bytes] | None:
    parts = {
        kind: dict(attributes(inner))
        for kind, inner in attributes(value)
        if kind in (CTA_TUPLE_IP, CTA_TUPLE_PROTO)
    }
    ip, proto = parts.get(CTA_TUPLE_IP, {}), parts.get(CTA_TUPLE_PROTO, {})
    source = bytes(ip.get(CTA_IP_V4_SRC) or ip.get(CTA_IP_V6_SRC) or b"")
    destination = bytes(ip.get(CTA_IP_V4_DST) or ip.get(CTA_IP_V6_DST) or b"")
    ports = [bytes(proto.get(kind) or b"") for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT)]
    number = proto.get(CTA_PROTO_NUM)
    if not number or len(source) != len(destination) or len(source) not in _ADDRESS_SIZES:
        return None
    # ICMP entries have a type, a code and an id in place of the ports.
    if any(len(port) != 2 for port in ports):
        return None
    return number[0], source + ports[0], destination + ports[1]
