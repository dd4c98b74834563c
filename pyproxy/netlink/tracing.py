"""The kernel's packet trace: the rules that a packet meets, sent to the group NFNLGRP_NFTRACE.

Facts: net/netfilter/nf_tables_trace.c and include/uapi/linux/netfilter/nf_tables.h. A packet is
traced from where a rule sets its nftrace bit. The kernel reports each rule that matches, with its
verdict, and a chain's policy. The packet's headers come with the first message of each base
chain, so a translation shows in the next one. An owned table (since Linux 5.12) is deleted with
its socket.
"""

from __future__ import annotations

import enum
import errno
import select
import struct
from collections.abc import Iterator, Sequence

import msgspec

from pyproxy.errors import KernelError
from pyproxy.model.address import Address, Family
from pyproxy.netlink import rules
from pyproxy.netlink.attributes import attribute, attribute_map, string, text
from pyproxy.netlink.frames import NLM_F_CREATE, read_messages
from pyproxy.netlink.nfnetlink import HEADER_SIZE, Message
from pyproxy.netlink.nftables import message_type
from pyproxy.netlink.sockets import NETLINK_NETFILTER, NetlinkSocket

_GROUP_NFTRACE = 9
_NEWTABLE, _TRACE = 0, 17
_RECEIVE_BUFFER = 4 << 20

_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_NETWORK, _TRANSPORT, _IIF, _OIF, _POLICY = 8, 9, 10, 12, 16
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_TABLE_FLAGS, _OWNER = 2, 2
_HOOK_PREROUTING, _HOOK_OUTPUT = 0, 3
# Conntrack has priority -200 and DNAT -100: in between, the flow's state is known and the packet
# still has the Service's address.
_AFTER_CONNTRACK = -150
_RATE, _BURST = 100, 20
"""Packets that are traced at most: per second, and in a burst."""

_V4, _V6 = struct.Struct(">12x4s4s"), struct.Struct(">8x16s16s")
_NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}


class Kind(enum.Enum):
    """The kind of a trace message: a rule that matched, a chain's end, or a chain's policy."""

    POLICY = 1
    RETURN = 2
    RULE = 3


class Event(msgspec.Struct, frozen=True):
    """One message. `verdict` is as nft writes it, such as `goto cluster4-2` or `drop`.

    `family` is the table's, as a number of netfilter; `handle` is the rule's, 0 without a rule.
    Addresses are None and ports 0 if the message has no headers; interfaces are indexes.
    """

    # A hash, the same in all hooks that the packet traverses. A later packet may have it too.
    packet: int
    kind: Kind
    family: int
    table: str
    chain: str
    handle: int
    verdict: str
    source: Address | None = None
    destination: Address | None = None
    source_port: int = 0
    port: int = 0
    incoming: int = 0
    outgoing: int = 0


class Match(msgspec.Struct, frozen=True):
    """The packets that are traced; without `source`, those from any address.

    `every_packet` includes those of established connections.
    """

    destination: Address
    protocol: int
    port: int
    source: Address | None = None
    every_packet: bool = False


def trace_table(table: str, match: Match, *, owned: bool) -> list[Message]:
    """Pack a table whose rules make the kernel trace matching packets."""
    flags = attribute(_TABLE_FLAGS, struct.pack(">I", _OWNER)) if owned else b""
    messages = [Message(message_type(_NEWTABLE), NLM_F_CREATE, string(_TABLE, table) + flags)]
    # Packets of the node's own processes do not traverse prerouting.
    for name, hook in (("prerouting", _HOOK_PREROUTING), ("output", _HOOK_OUTPUT)):
        messages.append(rules.new_base_chain(table, name, hook, _AFTER_CONNTRACK))
        messages.append(rules.new_rule(table, name, *_expressions(match)))
    return messages


def _expressions(match: Match) -> list[bytes]:
    register = rules.REGISTER
    size = len(match.destination)
    family = Family.IPV4 if size == 4 else Family.IPV6
    source_at, destination_at = (12, 16) if family is Family.IPV4 else (8, 24)
    found = [
        # An inet chain evaluates packets of both families, whose headers differ.
        rules.load_meta(rules.META_NFPROTO, register),
        rules.equal(register, bytes((_NFPROTO[family],))),
        rules.load_meta(rules.META_L4PROTO, register),
        rules.equal(register, bytes((match.protocol,))),
        rules.load_payload(rules.NETWORK_HEADER, destination_at, size, register),
        rules.equal(register, match.destination),
        rules.load_payload(rules.TRANSPORT_HEADER, 2, 2, register),
        rules.equal(register, match.port.to_bytes(2, "big")),
    ]
    if match.source is not None:
        found += [
            rules.load_payload(rules.NETWORK_HEADER, source_at, size, register),
            rules.equal(register, match.source),
        ]
    if not match.every_packet:
        found += rules.is_new(register)
    # The limit stands behind the matches: before them, other packets would use it up.
    return [*found, rules.limit(_RATE, _BURST), *rules.enable_trace(register)]


def read_events(data: bytes) -> Iterator[Event]:
    """Yield the trace messages of one datagram; other messages are skipped."""
    for kind, _, _, _, message in read_messages(data):
        if kind == message_type(_TRACE) and len(message) >= HEADER_SIZE:
            # The first byte of the nfgenmsg.
            family = message[HEADER_SIZE - 4]
            if event := _event(family, attribute_map(message[HEADER_SIZE:])):
                yield event


def _event(family: int, fields: dict[int, memoryview]) -> Event | None:
    def number(kind: int) -> int:
        return int.from_bytes(fields.get(kind, b""), "big")

    if not {_TABLE, _CHAIN, _ID} <= fields.keys() or number(_TYPE) not in {1, 2, 3}:
        return None
    kind = Kind(number(_TYPE))
    source, destination = _addresses(bytes(fields.get(_NETWORK, b"")))
    ports = bytes(fields.get(_TRANSPORT, b""))[:4].ljust(4, b"\0")
    verdict = _verdict(attribute_map(fields.get(_VERDICT, b"")))
    return Event(
        packet=number(_ID),
        kind=kind,
        family=family,
        table=text(fields[_TABLE]),
        chain=text(fields[_CHAIN]),
        handle=number(_HANDLE),
        verdict=_VERDICTS.get(number(_POLICY), "") if kind is Kind.POLICY else verdict,
        source=source,
        destination=destination,
        source_port=int.from_bytes(ports[:2], "big"),
        port=int.from_bytes(ports[2:], "big"),
        incoming=number(_IIF),
        outgoing=number(_OIF),
    )


def _addresses(header: bytes) -> tuple[Address | None, Address | None]:
    version = header[0] >> 4 if header else 0
    layout = {4: _V4, 6: _V6}.get(version)
    if layout is None or len(header) < layout.size:
        return None, None
    source, destination = layout.unpack_from(header)
    return Address(source), Address(destination)


_VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", -1: "continue", -5: "return"}
_WITH_CHAIN = {-3: "jump", -4: "goto"}


def _verdict(fields: dict[int, memoryview]) -> str:
    # Without a code the default is -1, which is NFT_CONTINUE.
    code = int.from_bytes(fields.get(_VERDICT_CODE, b"\xff"), "big", signed=True)
    if code in _WITH_CHAIN and _VERDICT_CHAIN in fields:
        return f"{_WITH_CHAIN[code]} {text(fields[_VERDICT_CHAIN])}"
    # A queue's number, or the errno of a drop, is in the upper half of the verdict.
    return _VERDICTS.get(code if code < 0 else code & 0xFF, str(code))


class TraceSocket:
    """Receives the trace messages of the network namespace that it is made in."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(NETLINK_NETFILTER, "traces", _RECEIVE_BUFFER)
        self._socket.join(_GROUP_NFTRACE)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def wait(self, seconds: float) -> Sequence[Event] | None:
        """Wait for the next messages, at most `seconds`; None if messages were lost.

        Raises KernelError.
        """
        readable, _, _ = select.select([self._socket.fileno()], [], [], seconds)
        if not readable:
            return ()
        try:
            return tuple(read_events(self._socket.receive()))
        except KernelError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise
