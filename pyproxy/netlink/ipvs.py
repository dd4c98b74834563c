"""IPVS over generic netlink: virtual services and their real servers, to and from bytes.

Facts: include/uapi/linux/ip_vs.h and net/netfilter/ipvs/ip_vs_ctl.c. Addresses take 16 bytes
whatever their family, ports are in network order, all other numbers in the host's. There are no
transactions, and no notifications.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from pyproxy.model.address import Address, Backend, Family, Port, Protocol
from pyproxy.netlink import generic
from pyproxy.netlink.attributes import attribute, attribute_map, nested, string, text
from pyproxy.netlink.generic import GENERIC_SIZE
from pyproxy.netlink.requests import Request

FAMILY_NAME = "IPVS"
"""The name of its family in generic netlink."""

_VERSION = 1
_NEW_SERVICE, _SET_SERVICE, _DEL_SERVICE, _GET_SERVICE = 1, 2, 3, 4
_NEW_DEST, _SET_DEST, _DEL_DEST, _GET_DEST = 5, 6, 7, 8
_SET_CONFIG, _GET_CONFIG = 12, 13
_SERVICE, _DEST = 1, 2
_TIMEOUTS = (4, 5, 6)
"""The attributes of the fields of `Timeouts`, in their order."""

_AF, _PROTOCOL, _ADDR, _PORT, _FWMARK, _SCHED_NAME, _FLAGS, _TIMEOUT, _NETMASK = range(1, 10)
_DEST_ADDR, _DEST_PORT, _FWD_METHOD, _WEIGHT, _U_THRESH, _L_THRESH = range(1, 7)
_ACTIVE_CONNS, _INACT_CONNS = 7, 8
_ADDR_FAMILY = 11
_STATS64, _STATS_CONNS = 12, 1

PERSISTENT = 0x1
SCHED_1, SCHED_2, SCHED_3 = 0x08, 0x10, 0x20
"""Flags whose meaning depends on the scheduler: for sh and mh, fallback and port."""

# Without IP_VS_SVC_F_HASHED (0x2), which the kernel sets itself, and ONEPACKET (0x4).
_OURS = PERSISTENT | SCHED_1 | SCHED_2 | SCHED_3
# The kernel changes only the flags that the mask names and keeps the others.
_EVERY_FLAG = 0xFFFFFFFF

_NUMBER = struct.Struct("=I")
_SHORT = struct.Struct("=H")
_LONG = struct.Struct("=Q")
_FLAGS_AND_MASK = struct.Struct("=II")

_AF_OF = {Family.IPV4: int(socket.AF_INET), Family.IPV6: int(socket.AF_INET6)}
_FAMILY_OF = {number: family for family, number in _AF_OF.items()}
_MASQ = attribute(_FWD_METHOD, _NUMBER.pack(0))
# NEW_DEST and SET_DEST need forwarding method, weight and both thresholds: EINVAL otherwise.
_NO_THRESHOLDS = attribute(_U_THRESH, _NUMBER.pack(0)) + attribute(_L_THRESH, _NUMBER.pack(0))


class Virtual(NamedTuple):
    """The identity of a virtual service: address and port, or a firewall mark.

    With a `mark` above 0 the address is empty, the port is 0, and the kernel ignores `protocol`.
    """

    family: Family
    protocol: int
    address: Address
    port: Port
    mark: int = 0


class Scheduling(NamedTuple):
    """How a virtual service picks a server: scheduler, flags, and persistence in seconds or 0."""

    scheduler: str
    flags: int = 0
    timeout: int = 0


class Timeouts(NamedTuple):
    """Idle seconds after which the kernel forgets a connection; 0 leaves the present value."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


class Server(msgspec.Struct, frozen=True, gc=False):
    """A real server as read from a dump.

    `connections` counts all that the kernel remembers, `active` those that are established.
    `masqueraded` is False with another forwarding method, such as direct routing.
    """

    backend: Backend
    weight: int
    connections: int = 0
    active: int = 0
    masqueraded: bool = True


class Messages:
    """Packs requests with the message type that this kernel assigned to the IPVS family."""

    def __init__(self, kind: int) -> None:
        self._kind = kind

    def add_virtual(self, virtual: Virtual, scheduling: Scheduling) -> Request:
        """Add a virtual service; EEXIST if there is one, ENOENT without such a scheduler."""
        return self._request(_NEW_SERVICE, _definition(virtual, scheduling))

    def set_virtual(self, virtual: Virtual, scheduling: Scheduling) -> Request:
        """Change the scheduling of a virtual service; ESRCH if there is none."""
        return self._request(_SET_SERVICE, _definition(virtual, scheduling))

    def delete_virtual(self, virtual: Virtual) -> Request:
        """Delete a virtual service with its servers; ESRCH if there is none."""
        return self._request(_DEL_SERVICE, _service(_identity(virtual)))

    def add_server(self, virtual: Virtual, backend: Backend, weight: int) -> Request:
        """Add a real server, masqueraded; EEXIST if it exists, ESRCH without the service."""
        return self._request(_NEW_DEST, _service(_identity(virtual)) + _dest(backend, weight))

    def set_server(self, virtual: Virtual, backend: Backend, weight: int) -> Request:
        """Change a real server's weight, and have it masqueraded; ENOENT if there is none."""
        return self._request(_SET_DEST, _service(_identity(virtual)) + _dest(backend, weight))

    def delete_server(self, virtual: Virtual, backend: Backend) -> Request:
        """Delete a real server; its connections end with their next packet."""
        named = nested(_DEST, _address_and_port(backend))
        return self._request(_DEL_DEST, _service(_identity(virtual)) + named)

    def get_virtuals(self) -> Request:
        """Request all virtual services."""
        # The kernel resumes a dump by counting: a change between two datagrams can make it skip or
        # repeat a service, and no flag reports it.
        return self._request(_GET_SERVICE, b"")

    def get_virtual(self, virtual: Virtual) -> Request:
        """Request one virtual service; ESRCH if there is none."""
        return self._request(_GET_SERVICE, _service(_identity(virtual)))

    def get_servers(self, virtual: Virtual) -> Request:
        """Request the real servers of one virtual service."""
        # If the virtual service does not exist, the dump is empty, without an error.
        return self._request(_GET_DEST, _service(_identity(virtual)))

    def get_timeouts(self) -> Request:
        """Request the timeouts of this network namespace."""
        return self._request(_GET_CONFIG, b"")

    def set_timeouts(self, timeouts: Timeouts) -> Request:
        """Set the timeouts that are not 0."""
        pairs = zip(_TIMEOUTS, timeouts, strict=True)
        body = [attribute(kind, _NUMBER.pack(seconds)) for kind, seconds in pairs if seconds]
        return self._request(_SET_CONFIG, b"".join(body))

    def _request(self, command: int, body: bytes) -> Request:
        return generic.command(self._kind, command, _VERSION, body)


def read_virtuals(replies: Iterable[memoryview]) -> dict[Virtual, Scheduling]:
    """Read the replies to `get_virtuals` and `get_virtual`."""
    found: dict[Virtual, Scheduling] = {}
    for reply in replies:
        service = attribute_map(attribute_map(reply[GENERIC_SIZE:]).get(_SERVICE, b""))
        family = _FAMILY_OF.get(_short(service, _AF))
        if family is None:
            continue
        flags, _ = _FLAGS_AND_MASK.unpack_from(service[_FLAGS]) if _FLAGS in service else (0, 0)
        # The kernel keeps a timeout without persistence, where it has no effect.
        timeout = _number(service, _TIMEOUT) if flags & PERSISTENT else 0
        scheduling = Scheduling(text(service[_SCHED_NAME]), flags & _OURS, timeout)
        # The kernel sends either the mark, or protocol, address and port.
        if _FWMARK in service:
            mark = _number(service, _FWMARK)
            found[Virtual(family, 0, Address(b""), Port(0), mark)] = scheduling
            continue
        address = Address(bytes(service[_ADDR][: family.bits // 8]))
        port = Port(int.from_bytes(service[_PORT], "big"))
        found[Virtual(family, _short(service, _PROTOCOL), address, port)] = scheduling
    return found


def read_servers(replies: Iterable[memoryview], family: Family) -> list[Server]:
    """Read the replies to `get_servers`, without servers of another family than the service's."""
    found = []
    for reply in replies:
        dest = attribute_map(attribute_map(reply[GENERIC_SIZE:]).get(_DEST, b""))
        # A server of an IPv6 service may be IPv4 (tunnelled). Kernels before 3.18 send no family.
        if _short(dest, _ADDR_FAMILY) not in (0, _AF_OF[family]) or _DEST_ADDR not in dest:
            continue
        backend = Backend(bytes(dest[_DEST_ADDR][: family.bits // 8]) + bytes(dest[_DEST_PORT]))
        active = _number(dest, _ACTIVE_CONNS)
        connections = active + _number(dest, _INACT_CONNS)
        # The kernel sends the method alone, without the other flags of connections.
        masqueraded = _number(dest, _FWD_METHOD) == 0
        found.append(Server(backend, _number(dest, _WEIGHT), connections, active, masqueraded))
    return found


def count_service_connections(replies: Iterable[memoryview]) -> dict[Virtual, int]:
    """Read the connections so far of each virtual service from the replies to `get_virtuals`.

    Up to two seconds old: the kernel adds up the counters of its processors at that interval.
    """
    return {
        virtual: _connections(reply, _SERVICE)
        for reply in replies
        for virtual in read_virtuals([reply])
    }


def count_server_connections(replies: Iterable[memoryview], family: Family) -> dict[Backend, int]:
    """Read the connections so far of each real server from the replies to `get_servers`."""
    return {
        server.backend: _connections(reply, _DEST)
        for reply in replies
        for server in read_servers([reply], family)
    }


def _connections(reply: memoryview, kind: int) -> int:
    found = attribute_map(attribute_map(reply[GENERIC_SIZE:])[kind])
    stats = attribute_map(found.get(_STATS64, b""))
    return int(_LONG.unpack(stats[_STATS_CONNS])[0]) if _STATS_CONNS in stats else 0


def read_timeouts(replies: Iterable[memoryview]) -> Timeouts:
    """Read the reply to `get_timeouts`."""
    found = {}
    for reply in replies:
        found.update(attribute_map(reply[GENERIC_SIZE:]))
    return Timeouts(*(_number(found, kind) for kind in _TIMEOUTS))


def protocol_name(protocol: int) -> str:
    """Return the name of a protocol number, such as "tcp"; the number itself if unknown."""
    known = protocol in Protocol.__members__.values()
    return Protocol(protocol).name.lower() if known else str(protocol)


def _identity(virtual: Virtual) -> bytes:
    family = attribute(_AF, _SHORT.pack(_AF_OF[virtual.family]))
    if virtual.mark:
        return family + attribute(_FWMARK, _NUMBER.pack(virtual.mark))
    return (
        family
        + attribute(_PROTOCOL, _SHORT.pack(virtual.protocol))
        + attribute(_ADDR, virtual.address.ljust(16, b"\0"))
        + attribute(_PORT, virtual.port.to_bytes(2, "big"))
    )


def _definition(virtual: Virtual, scheduling: Scheduling) -> bytes:
    # Persistence is per client address: the mask has all bits, for IPv6 as a prefix length.
    mask = b"\xff" * 4 if virtual.family is Family.IPV4 else _NUMBER.pack(virtual.family.bits)
    # NEW_SERVICE and SET_SERVICE need all of these (EINVAL otherwise), with or without persistence.
    return _service(
        _identity(virtual)
        + string(_SCHED_NAME, scheduling.scheduler)
        + attribute(_FLAGS, _FLAGS_AND_MASK.pack(scheduling.flags, _EVERY_FLAG))
        + attribute(_TIMEOUT, _NUMBER.pack(scheduling.timeout))
        + attribute(_NETMASK, mask)
    )


def _service(attributes: bytes) -> bytes:
    return nested(_SERVICE, attributes)


def _dest(backend: Backend, weight: int) -> bytes:
    weight_attribute = attribute(_WEIGHT, _NUMBER.pack(weight))
    # Without an address family the kernel takes that of the virtual service.
    return nested(_DEST, _address_and_port(backend), _MASQ, weight_attribute, _NO_THRESHOLDS)


def _address_and_port(backend: Backend) -> bytes:
    address, port = backend[:-2], backend[-2:]
    return attribute(_DEST_ADDR, address.ljust(16, b"\0")) + attribute(_DEST_PORT, port)


def _number(found: dict[int, memoryview], kind: int) -> int:
    return int(_NUMBER.unpack(found[kind])[0]) if len(found.get(kind, b"")) == 4 else 0


def _short(found: dict[int, memoryview], kind: int) -> int:
    return int(_SHORT.unpack(found[kind])[0]) if len(found.get(kind, b"")) == 2 else 0
