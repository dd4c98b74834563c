"""Conntrack entries over ctnetlink: read those of one protocol or status, delete chosen entries.

Facts: include/uapi/linux/netfilter/nfnetlink_conntrack.h and net/netfilter/nf_conntrack_netlink.c.
Since 5.8 the kernel sends only what matches CTA_TUPLE_ORIG in the fields that CTA_FILTER names;
older kernels ignore both attributes and send everything of the family, so every entry is compared
here as well. IPv6 addresses are never given to the filter: up to 6.18 at least the kernel inverts
their comparison, and sends all entries but the requested ones. A filter by status is in the kernel
since 5.15, and older kernels ignore it as well.

A dump is read piece by piece and never kept as a whole. Each piece is at most 32 KiB, and waiting
for the next one releases the interpreter's lock, so other threads run.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing

import msgspec

from pyproxy.errors import KernelError, StaleStateError
from pyproxy.model.address import Family, Protocol
from pyproxy.netlink.attributes import attribute, nested
from pyproxy.netlink.flows import (
    CTA_FILTER,
    CTA_IP_V4_DST,
    CTA_PROTO_DST_PORT,
    CTA_PROTO_NUM,
    CTA_STATUS,
    CTA_STATUS_MASK,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    IPS_OFFLOAD,
    Flow,
    read_entry,
    read_flows,
    tuple_attribute,
)
from pyproxy.netlink.frames import NLM_F_DUMP, pack_message
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.netlink.nfnetlink import pack_family
from pyproxy.netlink.requests import Request, Requests
from pyproxy.netlink.sockets import NETLINK_NETFILTER, NetlinkSocket

_IPCTNL_MSG_CT_NEW = 0x100
_IPCTNL_MSG_CT_GET = 0x101
_IPCTNL_MSG_CT_DELETE = 0x102

_NOW = attribute(7, bytes(4))
"""CTA_TIMEOUT: the entry expires now."""

_CTA_FILTER_ORIG_FLAGS = 1
_FILTER_IP_DST = 1 << 1
_FILTER_PROTO_NUM = 1 << 3
_FILTER_PROTO_DST_PORT = 1 << 5

_PORT_SIZE = 2
_PORTS_V4 = 6
# A dump cannot overflow it: the kernel adds a datagram only while at least half of it is free.
_RECEIVE_BUFFER = 1 << 18
_DELETE_AT_ONCE = 64
"""Entries whose deletion fails together if the request cannot be sent."""

# ctnetlink takes the family of the dump and of a tuple's addresses from the nfgenmsg.
_DOMAIN = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


class Deletion(msgspec.Struct, frozen=True):
    """The result of deleting entries; an entry that was gone already is in neither field."""

    deleted: int
    failed: tuple[tuple[Flow, KernelError], ...] = ()


class Conntrack:
    """The conntrack table of the network namespace in which this is made.

    `selective` becomes false at the first reply that shows that the kernel does not filter by
    destination: a dump per destination is then no cheaper than one of everything.
    """

    def __init__(self) -> None:
        self.selective = True
        self._requests = Requests(NETLINK_NETFILTER, "conntrack")

    def close(self) -> None:
        """Close the socket."""
        self._requests.close()

    def flows(
        self, family: Family, protocol: Protocol, destination: bytes = b""
    ) -> Iterator[list[Flow]]:
        """Yield the entries of one protocol, a piece of the dump at a time.

        `destination` narrows them to one address and port, or, of 2 bytes, to a port on any
        address. Entries that come or go meanwhile may be missing or come twice. Raises KernelError.
        """
        filtered = destination if family is Family.IPV4 else destination[-_PORT_SIZE:]
        for flows in _dump(family, _filter(protocol, filtered)):
            matching = [
                flow
                for flow in flows
                if flow.protocol == protocol and flow.destination.endswith(filtered)
            ]
            # An entry that the filter excludes shows that this kernel ignores the filter.
            if len(matching) < len(flows):
                self.selective = False
            kept = [flow for flow in matching if flow.destination.endswith(destination)]
            if kept:
                yield kept

    def offloaded(self, family: Family) -> Iterator[list[Flow]]:
        """Yield the entries that a flowtable has, a piece of the dump at a time.

        Entries that come or go meanwhile may be missing or come twice. Raises KernelError.
        """
        wanted = struct.pack(">I", IPS_OFFLOAD)
        body = attribute(CTA_STATUS, wanted) + attribute(CTA_STATUS_MASK, wanted)
        for flows in _dump(family, body):
            if kept := [flow for flow in flows if flow.offloaded]:
                yield kept

    def find(self, protocol: int, source: bytes, destination: bytes) -> Flow | None:
        """Return the entry of a client's packet in the default zone, None if there is none.

        Both ends are address and port. Raises KernelError.
        """
        family = Family.IPV4 if len(destination) == _PORTS_V4 else Family.IPV6
        ends = tuple_attribute(CTA_TUPLE_ORIG, Protocol(protocol), source, destination)
        body = pack_family(_DOMAIN[family]) + ends
        try:
            replies = self._requests.get(Request(_IPCTNL_MSG_CT_GET, 0, body))
        except StaleStateError:
            return None
        return next((read_entry(each) for each in replies), None)

    def delete(self, flows: Sequence[Flow]) -> Deletion:
        """Delete exactly these entries; return how many were, and the errors of the others."""
        deleted = 0
        failed: list[tuple[Flow, KernelError]] = []
        for start in range(0, len(flows), _DELETE_AT_ONCE):
            chunk = flows[start : start + _DELETE_AT_ONCE]
            requests = [
                Request(_IPCTNL_MSG_CT_DELETE, 0, pack_family(_DOMAIN[flow.family]) + flow.handle)
                for flow in chunk
            ]
            try:
                errors = self._requests.send(requests)
            except KernelError as error:
                failed.extend((flow, error) for flow in chunk)
                continue
            deleted += len(chunk) - len(errors)
            for each in errors:
                flow = chunk[each.index]
                if each.errno == errno.EBUSY and self.expire(flow):
                    deleted += 1
                # ENOENT also says that the tuple has a new entry by now, whose CTA_ID differs.
                elif each.errno != errno.ENOENT:
                    failed.append((flow, kernel_error(each.errno, "deleting a conntrack entry")))
        return Deletion(deleted, tuple(failed))

    def expire(self, flow: Flow) -> bool:
        """End the timeout of an entry and look it up; return whether it is gone then.

        Kernels before 6.1.32 and 5.15.115 refuse to delete an entry that is offloaded (EBUSY). A
        lookup deletes one that has expired. Does not raise.
        """
        body = pack_family(_DOMAIN[flow.family]) + flow.handle
        try:
            if self._requests.send([Request(_IPCTNL_MSG_CT_NEW, 0, body + _NOW)]):
                return False
            self._requests.get(Request(_IPCTNL_MSG_CT_GET, 0, body))
        except StaleStateError:
            return True
        except KernelError:
            return False
        return False


def _dump(family: Family, body: bytes) -> Iterator[list[Flow]]:
    """Yield the flows of each piece of a dump."""
    # A socket of its own, so that a reader that stops early leaves no replies for the next.
    with closing(NetlinkSocket(NETLINK_NETFILTER, "conntrack", _RECEIVE_BUFFER)) as dump:
        request = pack_family(_DOMAIN[family]), body
        dump.send(pack_message(_IPCTNL_MSG_CT_GET, NLM_F_DUMP, dump.take_sequence(), *request))
        # ctnetlink does not set NLM_F_DUMP_INTR, although packets change the table meanwhile.
        done = False
        while not done:
            flows, done = read_flows(dump.receive(), family)
            yield flows


def _filter(protocol: Protocol, destination: bytes) -> bytes:
    """Pack the filter of a dump: a protocol, and a port or an IPv4 address and port if given."""
    # The kernel refuses a filter by port that is not also one by protocol (EINVAL).
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
