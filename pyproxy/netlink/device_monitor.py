"""The node's network devices and the devices of its default routes, followed by notifications.

Facts: net/core/rtnetlink.c; include/uapi/linux/rtnetlink.h. A bridge announces its ports in the
same group, in messages of the family AF_BRIDGE.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Iterable, Iterator

import msgspec

from pyproxy.errors import KernelError
from pyproxy.netlink.attributes import attribute_map
from pyproxy.netlink.frames import HEADER, NLM_F_DUMP, pack_message, read_messages
from pyproxy.netlink.links import Link, get_link, read_links
from pyproxy.netlink.requests import Requests
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
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_GROUP_LINK, _GROUPS_ROUTE = 1, (7, 11)
_AF_UNSPEC = 0
_RT_TABLE_MAIN = 254
_RTN_UNICAST = 1
_RTA_OIF, _RTA_MULTIPATH = 4, 9
_IFINFOMSG = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NEXTHOP = struct.Struct("=HBBi")
_NUMBER = struct.Struct("=i")
_RECEIVE_BUFFER = 1 << 20
_TYPE_AT, _PREFIX_AT = 4, HEADER.size + 1
_NO_ROUTES = (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
"""The kernel has no such table, before its first route, or no such family."""

# A router has a million routes, and each change of one would wake the agent.
# nlmsg_type is in host order, and the filter loads it in network order.
_OF_INTEREST: tuple[Step, ...] = (
    (LOAD_HALF, 0, 0, _TYPE_AT),
    (IF_EQUAL, 5, 0, socket.htons(_NEWLINK)),
    (IF_EQUAL, 4, 0, socket.htons(_DELLINK)),
    (IF_EQUAL, 1, 0, socket.htons(_NEWROUTE)),
    (IF_EQUAL, 0, 3, socket.htons(_DELROUTE)),
    (LOAD_BYTE, 0, 0, _PREFIX_AT),
    (IF_EQUAL, 0, 1, 0),
    (RETURN, 0, 0, ACCEPT),
    (RETURN, 0, 0, REJECT),
)


class Devices(msgspec.Struct, frozen=True):
    """The devices of a network namespace, and the indices of those that default routes use."""

    links: tuple[Link, ...] = ()
    uplinks: frozenset[int] = frozenset()


class DeviceMonitor:
    """Follows the devices of the network namespace that it is made in.

    Links are kept in memory, so that a change costs its own notification, however many devices
    there are. One thread may `wait`, and any may call `devices` and `end`.
    """

    def __init__(self) -> None:
        self._socket = NetlinkSocket(NETLINK_ROUTE, "devices", _RECEIVE_BUFFER)
        self._socket.filter_notifications(_OF_INTEREST)
        # Before the first dump, so that no change is missed.
        for group in (_GROUP_LINK, *_GROUPS_ROUTE):
            self._socket.join(group)
        self._requests = Requests(NETLINK_ROUTE, "devices")
        self._routes = NetlinkSocket(NETLINK_ROUTE, "routes", _RECEIVE_BUFFER)
        self._routes.filter_dumps()
        self._lock = threading.Lock()
        self._links: dict[int, Link] = {}
        self._uplinks: frozenset[int] = frozenset()
        self._waiting = StoppableWait()
        # False before the first dump, and while what is in memory may lack a change.
        self._is_complete = False

    def devices(self) -> Devices:
        """Return the present devices. KernelError.

        Blocks for the dumps of links and routes at the first call, and after an error.
        """
        with self._lock:
            if not self._is_complete:
                self._read_all()
            return Devices(tuple(self._links.values()), self._uplinks)

    def wait(self) -> bool:
        """Block until the devices change, and return True; False after `end`. Raises KernelError.

        A change of a device's state, such as up, is no change here.
        """
        return self._waiting.wait(self._socket.fileno(), self._take_notifications)

    def end(self) -> None:
        """Make `wait` return False, now and from now on."""
        self._waiting.end()

    def close(self) -> None:
        """Close the descriptors, after `wait` has returned False."""
        self._socket.close()
        self._routes.close()
        self._requests.close()
        self._waiting.close()

    def _take_notifications(self) -> bool:
        before = self.devices()
        datagrams, lost = self._socket.read_notifications()
        with self._lock:
            # The kernel does not send these again, so an error leaves all to be read.
            was_complete, self._is_complete = self._is_complete, False
            if lost or not was_complete:
                self._read_all()
            else:
                self._follow(datagrams)
            self._is_complete = True
        return self.devices() != before

    def _follow(self, datagrams: Iterable[bytes]) -> None:
        routes_changed = False
        for data in datagrams:
            for kind, _, _, _, message in read_messages(data):
                if kind in (_NEWLINK, _DELLINK):
                    self._link_changed(kind, message[HEADER.size :])
                else:
                    routes_changed = True
        if routes_changed:
            self._uplinks = self._read_uplinks()

    def _link_changed(self, kind: int, body: memoryview) -> None:
        # A bridge that loses a port announces its deletion, and the device stays.
        if len(body) < _IFINFOMSG.size or body[0] != _AF_UNSPEC:
            return
        for link in read_links([body]):
            if kind == _DELLINK:
                self._links.pop(link.index, None)
            else:
                self._links[link.index] = _lasting(link)

    def _read_all(self) -> None:
        links = {
            link.index: _lasting(link) for link in read_links(self._requests.dump(get_link(0)))
        }
        self._uplinks, self._links = self._read_uplinks(), links
        self._is_complete = True

    def _read_uplinks(self) -> frozenset[int]:
        return frozenset(
            device
            for family in (socket.AF_INET, socket.AF_INET6)
            for device in self._default_devices(family)
        )

    def _default_devices(self, family: int) -> Iterator[int]:
        """Yield the devices of one family's default routes in the table main."""
        head = _RTMSG.pack(family, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, _RTN_UNICAST, 0)

        def pack(sequence: int) -> bytes:
            return pack_message(_GETROUTE, NLM_F_DUMP, sequence, head)

        try:
            # A router has a million others, which change during each dump. A default route that
            # changes meanwhile has a notification of its own.
            found = self._routes.request(pack, consistent=False, keep=_is_default)
        except KernelError as error:
            if error.errno in _NO_ROUTES:
                return
            raise
        for message in found:
            yield from _outgoing(message[HEADER.size :])


def _lasting(link: Link) -> Link:
    """Return a link without its state, which changes more often than what it is."""
    return msgspec.structs.replace(link, up=True, carrier=True, port=None, mtu=0)


def _is_default(message: memoryview) -> bool:
    return len(message) >= HEADER.size + _RTMSG.size and message[_PREFIX_AT] == 0


def _outgoing(route: memoryview) -> Iterator[int]:
    fields = attribute_map(route[_RTMSG.size :])
    device = fields.get(_RTA_OIF)
    if device is not None and len(device) == _NUMBER.size:
        yield int(_NUMBER.unpack(device)[0])
    hops = fields.get(_RTA_MULTIPATH, memoryview(b""))
    while len(hops) >= _NEXTHOP.size:
        length, _, _, index = _NEXTHOP.unpack_from(hops)
        yield index
        if length < _NEXTHOP.size:
            return
        hops = hops[(length + 3) & ~3 :]
