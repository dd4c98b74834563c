"""Conntrack entries over ctnetlink: read those of one protocol, delete chosen ones.

Facts: include/uapi/linux/netfilter/nfnetlink_conntrack.h and net/netfilter/nf_conntrack_netlink.c.
Since 5.8 the kernel sends only what matches CTA_TUPLE_ORIG in the fields that CTA_FILTER names;
older kernels ignore both attributes and send everything of the family, so every answer is compared
here as well. IPv6 addresses are never given to the filter: up to 6.18 at least it takes them the
wrong way round, and sends all entries but those asked for.

A dump is read piece by piece and never held whole. Each piece is at most 32 KiB, and the
interpreter's lock is free while the next is waited for, so other threads go on.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing

import msgspec

from pyproxy.errors import KernelError
from pyproxy.model.address import Family, Protocol
from pyproxy.netlink.attributes import attribute, nested
from pyproxy.netlink.flows import (
    CTA_FILTER,
    CTA_IP_V4_DST,
    CTA_PROTO_DST_PORT,
    CTA_PROTO_NUM,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    HEADER,
    NLMSG_ERROR,
    Flow,
    decode,
    error_code,
    messages,
)
from pyproxy.netlink.frames import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.netlink.sockets import NETLINK_NETFILTER, NetlinkSocket

_IPCTNL_MSG_CT_GET = 0x101
_IPCTNL_MSG_CT_DELETE = 0x102

_CTA_FILTER_ORIG_FLAGS = 1
_FILTER_IP_DST = 1 << 1
_FILTER_PROTO_NUM = 1 << 3
_FILTER_PROTO_DST_PORT = 1 << 5

_PORT_SIZE = 2
_RECEIVE_BUFFER = 1 << 18
_DELETE_AT_ONCE = 64
"""Acknowledgements wait in the socket until all of a message is handled: few enough to fit."""

_DOMAIN = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


class Deletion(msgspec.Struct, frozen=True):
    """What became of a request to delete entries; one already gone is neither of the two."""

    deleted: int
    failed: tuple[tuple[Flow, KernelError], ...] = ()


class Conntrack:
    """The conntrack table of the network namespace in which this is made.

    `selective` turns false at the first answer that shows that the kernel does not filter by
    destination: a dump for each destination is then no cheaper than one for all.
    """

    def __init__(self) -> None:
        self.selective = True
        self._requests = _open()

    def close(self) -> None:
        """Give the socket back."""
        self._requests.close()

    def flows(
        self, family: Family, protocol: Protocol, destination: bytes = b""
    ) -> Iterator[list[Flow]]:
        """Read the entries of one protocol, a piece at a time.

        `destination` narrows them to one address and port, or, of 2 bytes, to a port on any
        address. Entries made or gone meanwhile may be missed or told of twice. Raises KernelError.
        """
        asked = destination if family is Family.IPV4 else destination[-_PORT_SIZE:]
        # Its own socket, so that a reader who stops half-way leaves nothing behind for the next.
        with closing(_open()) as dump:
            request = _filter(protocol, asked)
            dump.send(_message(_IPCTNL_MSG_CT_GET, NLM_F_DUMP, dump.number(), family, request))
            done = False
            while not done:
                piece = dump.receive()
                flows, done = decode(piece, family)
                ours = [
                    flow
                    for flow in flows
                    if flow.protocol == protocol and flow.destination.endswith(asked)
                ]
                if len(ours) < len(flows):
                    self.selective = False
                kept = [flow for flow in ours if flow.destination.endswith(destination)]
                if kept:
                    yield kept

    def delete(self, flows: Sequence[Flow]) -> Deletion:
        """Delete just these entries, and tell which the kernel would not delete."""
        deleted = 0
        failed: list[tuple[Flow, KernelError]] = []
        for start in range(0, len(flows), _DELETE_AT_ONCE):
            chunk = flows[start : start + _DELETE_AT_ONCE]
            try:
                codes = self._request(chunk)
            except KernelError as error:
                failed.extend((flow, error) for flow in chunk)
                continue
            for flow, code in zip(chunk, codes, strict=True):
                if code == 0:
                    deleted += 1
                elif code != errno.ENOENT:
                    failed.append((flow, kernel_error(code, "deleting a conntrack entry")))
        return Deletion(deleted, tuple(failed))

    def _request(self, flows: Sequence[Flow]) -> list[int]:
        first = self._requests.number(len(flows))
        self._requests.send(
            b"".join(
                _message(
                    _IPCTNL_MSG_CT_DELETE,
                    NLM_F_ACK,
                    first + index,
                    flow.family,
                    flow.handle,
                )
                for index, flow in enumerate(flows)
            )
        )
        codes: dict[int, int] = {}
        while len(codes) < len(flows):
            piece = self._requests.receive()
            for offset, _, kind, sequence in messages(piece):
                # What answers an earlier request, whose answers overflowed, is passed over.
                if kind == NLMSG_ERROR and sequence >= first:
                    codes[sequence] = error_code(piece, offset)
        return [codes[first + index] for index in range(len(flows))]


def _open() -> NetlinkSocket:
    return NetlinkSocket(NETLINK_NETFILTER, "conntrack", _RECEIVE_BUFFER)


def _message(kind: int, flags: int, sequence: int, family: Family, body: bytes) -> bytes:
    size = HEADER.size + len(body)
    header = HEADER.pack(size, kind, NLM_F_REQUEST | flags, sequence, 0, _DOMAIN[family], 0, 0)
    return header + body


def _filter(protocol: Protocol, destination: bytes) -> bytes:
    """Narrow a dump to a protocol, and to a port or an IPv4 address and port where given."""
    flags = _FILTER_PROTO_NUM
    ip: list[bytes] = []
    proto = [attribute(CTA_PROTO_NUM, bytes((protocol,)))]
    if destination:
        flags |= _FILTER_PROTO_DST_PORT
        proto.append(attribute(CTA_PROTO_DST_PORT, destination[-_PORT_SIZE:]))
    if len(destination) > _PORT_SIZE:
        flags |= _FILTER_IP_DST
        ip.append(nested(CTA_TUPLE_IP, attribute(CTA_IP_V4_DST, destination[:-_PORT_SIZE])))
    return nested(CTA_TUPLE_ORIG, *ip, nested(CTA_TUPLE_PROTO, *proto)) + nested(
        CTA_FILTER, attribute(_CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags))
    )
