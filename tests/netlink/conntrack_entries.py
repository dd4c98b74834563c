"""Conntrack entries created in bulk, and a network namespace to create them in."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from pyroute2 import netns

from pyproxy.model.address import Backend, Family, Port, Protocol, backend, parse_address
from pyproxy.netlink.attributes import attribute, nested
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.netlink.flows import (
    CTA_COUNTERS_ORIG,
    CTA_COUNTERS_REPLY,
    CTA_ID,
    CTA_STATUS,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    CTA_ZONE,
    IPS_OFFLOAD,
    Flow,
    read_flows,
    tuple_attribute,
)
from pyproxy.netlink.frames import pack_message
from pyproxy.netlink.nfnetlink import pack_family
from tests.namespaces import empty_namespace

_CTA_PROTOINFO, _CTA_TIMEOUT = 4, 7
_CONFIRMED_AND_NATTED = 0x8 | 0x20 | 0x100
_CREATE = 0x1 | 0x4 | 0x200 | 0x400
_AT_ONCE = 100


class Entry(msgspec.Struct, frozen=True):
    """A flow to create; without `by`, it is not translated."""

    client: Backend
    to: Backend
    by: Backend = Backend(b"")
    protocol: Protocol = Protocol.UDP
    zone: int = 0


def offloaded(
    entry: Entry, number: int = 1, packets: int = 0, size: int = 0, status: int = IPS_OFFLOAD
) -> Flow:
    """Return an entry as the kernel writes it while a flowtable has its flow.

    `number` is its id; `packets` and `size`, in bytes, are those of the client's direction, and
    half of them came back.
    """
    family = Family.IPV4 if len(entry.to) == 6 else Family.IPV6
    counters = {CTA_COUNTERS_ORIG: (packets, size), CTA_COUNTERS_REPLY: (packets // 2, size // 2)}
    body = b"".join(
        (
            tuple_attribute(CTA_TUPLE_ORIG, entry.protocol, entry.client, entry.to),
            tuple_attribute(CTA_TUPLE_REPLY, entry.protocol, entry.by or entry.to, entry.client),
            attribute(CTA_STATUS, struct.pack(">I", _CONFIRMED_AND_NATTED | status)),
            attribute(CTA_ID, struct.pack(">I", number)),
            *(
                nested(
                    kind,
                    attribute(1, struct.pack(">Q", some)),
                    attribute(2, struct.pack(">Q", octets)),
                )
                for kind, (some, octets) in counters.items()
            ),
        )
    )
    domain = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    ((flow,), _) = read_flows(pack_message(0x100, 2, 1, pack_family(domain), body), family)
    return flow


def place(text: str, port: int) -> Backend:
    return backend(parse_address(text), Port(port))


@contextmanager
def namespace() -> Iterator[str]:
    """Enter a new network namespace: sockets and programs of this process are in it."""
    with empty_namespace("conntrack") as made:
        netns.pushns(made.name)
        try:
            yield made.name
        finally:
            netns.popns()


@contextmanager
def empty_table() -> Iterator[Conntrack]:
    """Yield the conntrack table of a new network namespace, which this process enters."""
    with namespace():
        opened = Conntrack()
        try:
            yield opened
        finally:
            opened.close()


def insert(entries: Iterable[Entry]) -> None:
    """Create entries, a hundred at a time."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    with opened:
        opened.bind((0, 0))
        waiting = iter(entries)
        while batch := list(itertools.islice(waiting, _AT_ONCE)):
            opened.send(b"".join(_request(entry) for entry in batch))
            answered = 0
            while answered < len(batch):
                data = opened.recv(1 << 16)
                offset = 0
                while offset < len(data):
                    length, _, _, _, _, code = struct.unpack_from("=IHHIIi", data, offset)
                    assert code == 0, os.strerror(-code)
                    offset += (length + 3) & ~3
                    answered += 1


def count() -> int:
    """Return the number of entries in the present namespace, of all protocols."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def _request(entry: Entry) -> bytes:
    family = Family.IPV4 if len(entry.to) == 6 else Family.IPV6
    body = b"".join(
        (
            tuple_attribute(CTA_TUPLE_ORIG, entry.protocol, entry.client, entry.to),
            tuple_attribute(CTA_TUPLE_REPLY, entry.protocol, entry.by or entry.to, entry.client),
            attribute(CTA_STATUS, struct.pack(">I", _CONFIRMED_AND_NATTED if entry.by else 0x8)),
            attribute(_CTA_TIMEOUT, struct.pack(">I", 600)),
            attribute(CTA_ZONE, struct.pack(">H", entry.zone)) if entry.zone else b"",
            _state(entry.protocol),
        )
    )
    domain = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    return pack_message(0x100, _CREATE, 0, pack_family(domain), body)


def _state(protocol: Protocol) -> bytes:
    """Pack the established state of protocols that have one."""
    if protocol is Protocol.TCP:
        return attribute(_CTA_PROTOINFO | 0x8000, attribute(1 | 0x8000, attribute(1, b"\3")))
    if protocol is Protocol.SCTP:
        tags = attribute(2, b"\0\0\0\1") + attribute(3, b"\0\0\0\1")
        return attribute(_CTA_PROTOINFO | 0x8000, attribute(3 | 0x8000, attribute(1, b"\4") + tags))
    return b""
