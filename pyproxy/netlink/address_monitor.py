"""Changes of the node's addresses, from rtnetlink's notifications.

Facts: include/uapi/linux/rtnetlink.h; net/netlink/af_netlink.c runs a socket's filter on each
notification before it is queued.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Container

from pyproxy.model.address import Address, Family, parse_network
from pyproxy.netlink.attributes import attribute_map
from pyproxy.netlink.frames import HEADER, read_messages
from pyproxy.netlink.rtnetlink import RT_TABLE_LOCAL, RTN_LOCAL
from pyproxy.netlink.socket_filter import (
    ACCEPT,
    IF_EQUAL,
    LOAD_BYTE,
    LOAD_HALF,
    REJECT,
    RETURN,
    Step,
)
from pyproxy.netlink.sockets import NETLINK_ROUTE, NetlinkSocket
from pyproxy.netlink.stoppable_wait import StoppableWait

_NEWLINK, _DELLINK = 16, 17
_NEWADDR, _DELADDR = 20, 21
_NEWROUTE, _DELROUTE = 24, 25
_GROUP_LINK, _GROUPS_ADDRESS, _GROUPS_ROUTE = 1, (5, 9), (7, 11)
"""RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR and _IPV6_IFADDR, RTNLGRP_IPV4_ROUTE and _IPV6_ROUTE."""

_IFADDRMSG = struct.Struct("=BBBBI")
_IFINFOMSG = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_FIRST_ATTRIBUTE = {
    **dict.fromkeys((_NEWADDR, _DELADDR), _IFADDRMSG.size),
    **dict.fromkeys((_NEWROUTE, _DELROUTE), _RTMSG.size),
}
_ADDRESS = 1
"""IFA_ADDRESS and RTA_DST."""
_RTA_OIF = 4

_LINK_LOCAL = parse_network("fe80::/10")
_TYPE_AT, _TABLE_AT, _KIND_AT = 4, HEADER.size + 4, HEADER.size + 7
_RECEIVE_BUFFER = 1 << 18

# A router has a million routes in other tables, and each change of one would wake the agent.
# nlmsg_type is in host order, and the filter loads it in network order.
_OF_INTEREST: tuple[Step, ...] = (
    (LOAD_HALF, 0, 0, _TYPE_AT),
    (IF_EQUAL, 7, 0, socket.htons(_NEWLINK)),
    (IF_EQUAL, 1, 0, socket.htons(_NEWROUTE)),
    (IF_EQUAL, 0, 4, socket.htons(_DELROUTE)),
    (LOAD_BYTE, 0, 0, _TABLE_AT),
    (IF_EQUAL, 0, 3, RT_TABLE_LOCAL),
    (LOAD_BYTE, 0, 0, _KIND_AT),
    (IF_EQUAL, 0, 1, RTN_LOCAL),
    (RETURN, 0, 0, ACCEPT),
    (RETURN, 0, 0, REJECT),
)


class LocalAddressMonitor:
    """Detects changes of what is local to the node: addresses, and routes in the table local.

    The removal of a device counts too, because the kernel does not announce the IPv4 routes that it
    removes with it (fib_disable_ip in net/ipv4/fib_frontend.c). IPv6 link-local addresses do not
    count: each new pod's interface has one.

    `received` counts the notifications that reached this process. `ignored` returns the devices
    whose addresses do not count. One thread may `wait`, and any may call `end`.
    """

    def __init__(self, ignored: Callable[[], Container[int]] = frozenset) -> None:
        self._ignored = ignored
        self._socket = NetlinkSocket(NETLINK_ROUTE, "addresses", _RECEIVE_BUFFER)
        self._socket.filter_notifications(_OF_INTEREST)
        for group in (_GROUP_LINK, *_GROUPS_ADDRESS, *_GROUPS_ROUTE):
            self._socket.join(group)
        self._waiting = StoppableWait()
        self.received = 0

    def wait(self) -> bool:
        """Block until a change, and return True; return False after `end`. Raises KernelError.

        Lost notifications count as a change.
        """
        return self._waiting.wait(self._socket.fileno(), self.changed)

    def end(self) -> None:
        """Make `wait` return False, now and from now on."""
        self._waiting.end()

    def changed(self) -> bool:
        """Return whether an address or a local route changed since the last call.

        It does not block. Lost notifications count as a change. Raises KernelError.
        """
        datagrams, changed = self._socket.read_notifications()
        for data in datagrams:
            for kind, _, _, _, message in read_messages(data):
                self.received += 1
                changed = changed or self._is_change(kind, message[HEADER.size :])
        return changed

    def _is_change(self, kind: int, body: memoryview) -> bool:
        if kind == _DELLINK:
            return True
        start = _FIRST_ATTRIBUTE.get(kind)
        if start is None or len(body) < start:
            return False
        fields = attribute_map(body[start:])
        if kind in (_NEWADDR, _DELADDR):
            device = _IFADDRMSG.unpack_from(body)[4]
        else:
            device = int.from_bytes(fields.get(_RTA_OIF, b""), sys.byteorder)
        if device in self._ignored():
            return False
        address = bytes(fields.get(_ADDRESS, b""))
        return not (len(address) * 8 == Family.IPV6.bits and Address(address) in _LINK_LOCAL)

    def close(self) -> None:
        """Close the descriptors, after `wait` has returned False."""
        self._socket.close()
        self._waiting.close()


class AddressMonitor:
    """Detects changes of addresses, and of one device.

    `own_port` is the socket whose changes do not count.
    """

    def __init__(self, own_port: int | None = None) -> None:
        self._own_port = own_port
        self._socket = NetlinkSocket(NETLINK_ROUTE, "addresses", _RECEIVE_BUFFER)
        for group in (_GROUP_LINK, *_GROUPS_ADDRESS):
            self._socket.join(group)

    def changed(self, device: int = 0) -> bool:
        """Return whether an address, or the device of this index, changed since the last call.

        It does not block. Lost notifications count as a change. Raises KernelError.
        """
        datagrams, lost = self._socket.read_notifications()
        return lost or any(
            self._concerns(kind, port, message[HEADER.size :], device)
            for data in datagrams
            for kind, _, _, port, message in read_messages(data)
        )

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _concerns(self, kind: int, port: int, body: memoryview, device: int) -> bool:
        # Only IPv4 notifications name the sender: those of IPv6 addresses have port 0 (addrconf.c).
        if port == self._own_port:
            return False
        if kind in (_NEWADDR, _DELADDR):
            return True
        if kind in (_NEWLINK, _DELLINK) and len(body) >= _IFINFOMSG.size:
            return bool(_IFINFOMSG.unpack_from(body)[2] == device)
        return False
