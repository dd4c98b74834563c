"""Questions to the kernel's routing: the route of a packet, routes that refuse, policy rules.

Facts: inet_rtm_getroute in net/ipv4/route.c and inet6_rtm_getroute in net/ipv6/route.c; fib_props
in net/ipv4/fib_semantics.c and fib4_rule_action in net/ipv4/fib_rules.c for the errors;
include/uapi/linux/rtnetlink.h, fib_rules.h and neighbour.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from pyproxy.errors import KernelError, TransientKernelError
from pyproxy.model.address import Address, Family, Mark, Network, Port, Protocol, family_of
from pyproxy.netlink.attributes import attribute, attribute_map, text
from pyproxy.netlink.requests import Request, Requests

_GETROUTE, _GETNEIGH, _GETRULE, _GETNEXTHOP = 26, 30, 34, 106
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY = 1, 2, 3, 4, 5
_RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE, _RTA_MARK, _RTA_VIA = 7, 8, 15, 16, 18
_RTA_MULTIPATH, _RTA_IP_PROTO, _RTA_SPORT, _RTA_DPORT, _RTA_NH_ID = 9, 27, 28, 29, 30
_NHA_ID, _NHA_GROUP, _NHA_BLACKHOLE = 1, 2, 4
_RTAX_MTU = 2
_RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 0x1000, 0x2000
_RT_TABLE_MAIN = 254
_FRA_DST, _FRA_SRC, _FRA_IFNAME, _FRA_PRIORITY = 1, 2, 3, 6
_FRA_GOTO, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_OIFNAME = 4, 10, 15, 16, 17
_FRA_UID_RANGE, _FRA_IP_PROTO, _FRA_SPORT, _FRA_DPORT = 20, 22, 23, 24
_FIB_RULE_INVERT = 2
_NDA_DST, _NDA_CACHEINFO = 1, 3
_USER_HZ = 100

_RTMSG = struct.Struct("=BBBBBBBBI")
_RULE = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxHiHBB")
_CACHEINFO = struct.Struct("=IIII")
_NUMBER = struct.Struct("=I")
_PORTS = struct.Struct("=HH")
_UIDS = struct.Struct("=II")
_NEXTHOP = struct.Struct("=HBBi")
_NEXTHOP_DEAD = 1
_NHMSG = struct.Struct("=BBBBI")
_NEXTHOP_GROUP = struct.Struct("=IBBH")
_AF = {Family.IPV4: int(socket.AF_INET), Family.IPV6: int(socket.AF_INET6)}

RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST = 1, 2, 3
RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT = 6, 7, 8
REFUSALS = {RTN_BLACKHOLE: "blackhole", RTN_UNREACHABLE: "unreachable", RTN_PROHIBIT: "prohibit"}
"""The types of routes, and the actions of policy rules, that refuse a packet."""

NUD_INCOMPLETE, NUD_FAILED = 0x01, 0x20
_NUD_NOARP, NUD_PERMANENT = 0x40, 0x80


class RouteQuery(msgspec.Struct, frozen=True):
    """A packet for the kernel's routing.

    With `in_device` it is routed as if received there, source validation included; with 0 as if
    sent by this node. A source of another host needs an `in_device`.
    """

    destination: Address
    source: Address | None = None
    in_device: int = 0
    mark: Mark = Mark(0)
    protocol: Protocol | None = None
    port: Port = Port(0)
    source_port: Port = Port(0)


class NextHop(msgspec.Struct, frozen=True):
    """One of several next hops of a route, between which the kernel divides connections."""

    device: int
    gateway: Address | None = None


class RouteReply(msgspec.Struct, frozen=True):
    """The route of a packet, or the errno with which the kernel refused it.

    `mtu` is that of the route, 0 if it has none. `prefix` is the length of the route's network, if
    the match was requested, and `hops` its next hops if it has several.
    """

    error: int = 0
    kind: int = RTN_UNICAST
    table: int = 0
    prefix: int = 0
    device: int = 0
    gateway: Address | None = None
    source: Address | None = None
    mtu: int = 0
    hops: tuple[NextHop, ...] = ()


RULE_GOTO = 2
"""The action of a policy rule after which the rules from another priority on apply."""


class Rule(msgspec.Struct, frozen=True):
    """A policy rule; `action` is 1 for a lookup in `table`, `RULE_GOTO`, or a key of `REFUSALS`.

    `inverted` is true if it matches all but what the other fields say. Ranges have both ends; None
    stands for any. `protocol` is 0 for any. `uids` are of the socket that sends. `goto` is the
    priority that rules go on with.
    """

    family: Family
    priority: int
    action: int
    table: int
    source: Network | None = None
    destination: Network | None = None
    mark: int = 0
    mask: int = 0
    in_device: str = ""
    out_device: str = ""
    inverted: bool = False
    protocol: int = 0
    source_ports: tuple[int, int] | None = None
    ports: tuple[int, int] | None = None
    uids: tuple[int, int] | None = None
    goto: int = 0


class Neighbour(msgspec.Struct, frozen=True):
    """A neighbour's state (NUD_), and the seconds for which it has been in it."""

    state: int
    age: float = 0.0


class RefusingRoute(msgspec.Struct, frozen=True):
    """A route of a type in `REFUSALS`, or through a `nexthop` object that is a black hole."""

    kind: int
    table: int
    network: Network
    nexthop: int = 0


class Routing:
    """The routing of the network namespace in which this is made. Methods raise KernelError."""

    def __init__(self) -> None:
        self._requests = Requests(0, "rtnetlink")
        self._requests.filter_dumps()

    def close(self) -> None:
        """Close the socket."""
        self._requests.close()

    def route(self, query: RouteQuery, *, match: bool = False) -> RouteReply:
        """Return the route of a packet; with `match` that of the routing table, with its prefix.

        A refusal is a reply with its errno. Raises TransientKernelError for an error that is none.
        """
        family = family_of(query.destination)
        # IPv6 always returns the table, and rejects the flag that asks for it.
        flags = _RTM_F_LOOKUP_TABLE if family is Family.IPV4 else 0
        flags |= _RTM_F_FIB_MATCH if match else 0
        source_bits = family.bits if query.source else 0
        body = _RTMSG.pack(_AF[family], family.bits, source_bits, 0, 0, 0, 0, 0, flags)
        try:
            replies = self._requests.get(Request(_GETROUTE, 0, body + _pack_query(query)))
        except TransientKernelError:
            raise
        except KernelError as error:
            return RouteReply(error=error.errno or errno.EINVAL)
        return _read_route(replies)

    def refusing_routes(self, family: Family) -> list[RefusingRoute]:
        """Return the routes that refuse packets, in all tables."""
        found: list[RefusingRoute] = []
        for kind in REFUSALS:
            head = _RTMSG.pack(_AF[family], 0, 0, 0, 0, 0, 0, kind, 0)
            found += _read_refusing(self._requests.dump(Request(_GETROUTE, 0, head)), family)
        if nexthops := self._refusing_nexthops():
            # The type of such a route is that of one with a next hop.
            head = _RTMSG.pack(_AF[family], 0, 0, 0, 0, 0, 0, RTN_UNICAST, 0)
            replies = self._requests.dump(Request(_GETROUTE, 0, head))
            found += _read_nexthop_routes(replies, family, nexthops)
        return found

    def _refusing_nexthops(self) -> frozenset[int]:
        """Return the ids of nexthop objects that are black holes, and of groups of such."""
        try:
            replies = self._requests.dump(Request(_GETNEXTHOP, 0, _NHMSG.pack(0, 0, 0, 0, 0)))
            return _read_refusing_nexthops(replies)
        except TransientKernelError:
            raise
        except KernelError:  # Linux before 5.3 has none
            return frozenset()

    def pod_routes(self, networks: Sequence[Network]) -> list[Network]:
        """Return the destinations of the main table's routes with a next hop in `networks`."""
        found: list[Network] = []
        for family in {network.family for network in networks}:
            head = _RTMSG.pack(_AF[family], 0, 0, 0, _RT_TABLE_MAIN, 0, 0, RTN_UNICAST, 0)
            for reply in self._requests.dump(Request(_GETROUTE, 0, head)):
                if len(reply) < _RTMSG.size:
                    continue
                prefix = _RTMSG.unpack_from(reply)[1]
                fields = attribute_map(reply[_RTMSG.size :])
                network = _network(fields.get(_RTA_DST), prefix, family)
                if _gateway(fields) and any(network.address in each for each in networks):
                    found.append(network)
        return found

    def rules(self, family: Family) -> list[Rule]:
        """Return the policy rules in order."""
        head = _RULE.pack(_AF[family], 0, 0, 0, 0, 0, 0, 0, 0)
        return sorted(
            _read_rules(self._requests.dump(Request(_GETRULE, 0, head)), family),
            key=lambda rule: rule.priority,
        )

    def count_neighbours(self, family: Family) -> int:
        """Count the neighbours of one family that the kernel may delete."""
        head = _NDMSG.pack(_AF[family], 0, 0, 0, 0, 0)
        replies = self._requests.dump(Request(_GETNEIGH, 0, head))
        states = (_NDMSG.unpack_from(reply)[3] for reply in replies if len(reply) >= _NDMSG.size)
        return sum(not state & (_NUD_NOARP | NUD_PERMANENT) for state in states)

    def neighbour(self, device: int, address: Address) -> Neighbour | None:
        """Return a neighbour; None if the kernel has no entry for it."""
        body = _NDMSG.pack(_AF[family_of(address)], 0, device, 0, 0, 0)
        request = Request(_GETNEIGH, 0, body + attribute(_NDA_DST, address))
        try:
            replies = self._requests.get(request)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                return None
            raise
        for reply in replies:
            if len(reply) >= _NDMSG.size:
                times = attribute_map(reply[_NDMSG.size :]).get(_NDA_CACHEINFO, b"")
                # Confirmed, used, updated: in hundredths of a second, whatever the kernel's HZ.
                ticks = _CACHEINFO.unpack_from(times)[2] if len(times) >= _CACHEINFO.size else 0
                return Neighbour(int(_NDMSG.unpack_from(reply)[3]), ticks / _USER_HZ)
        return None


def _pack_query(query: RouteQuery) -> bytes:
    parts = [attribute(_RTA_DST, query.destination)]
    if query.source is not None:
        parts.append(attribute(_RTA_SRC, query.source))
    if query.in_device:
        parts.append(attribute(_RTA_IIF, _NUMBER.pack(query.in_device)))
    if query.mark:
        parts.append(attribute(_RTA_MARK, _NUMBER.pack(query.mark)))
    # The kernel's lookup takes these protocols alone: TCP, UDP and ICMP (inet_rtm_getroute_parse).
    if query.protocol in (Protocol.TCP, Protocol.UDP):
        parts.append(attribute(_RTA_IP_PROTO, bytes([query.protocol])))
        if query.port:
            parts.append(attribute(_RTA_DPORT, query.port.to_bytes(2, "big")))
        if query.source_port:
            parts.append(attribute(_RTA_SPORT, query.source_port.to_bytes(2, "big")))
    return b"".join(parts)


def _read_route(replies: Iterable[memoryview]) -> RouteReply:
    for reply in replies:
        if len(reply) < _RTMSG.size:
            continue
        _, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(reply)
        fields = attribute_map(reply[_RTMSG.size :])
        metrics = attribute_map(fields.get(_RTA_METRICS, b""))
        return RouteReply(
            # IPv6 returns the route that refuses where IPv4 returns its error.
            error=_ERRORS.get(kind, 0),
            kind=kind,
            table=_number(fields, _RTA_TABLE) or table,
            prefix=prefix,
            device=_number(fields, _RTA_OIF),
            gateway=_gateway(fields),
            source=_address(fields.get(_RTA_PREFSRC)),
            mtu=_number(metrics, _RTAX_MTU),
            hops=tuple(_read_hops(fields.get(_RTA_MULTIPATH, memoryview(b"")))),
        )
    return RouteReply(error=errno.ENETUNREACH)


def _read_hops(value: memoryview) -> Iterator[NextHop]:
    """Yield the next hops that are in use: the kernel sends nothing by those whose device is down.

    struct rtnexthop: its length with the attributes behind it, flags, weight and device.
    """
    while len(value) >= _NEXTHOP.size:
        length, flags, _, device = _NEXTHOP.unpack_from(value)
        if not _NEXTHOP.size <= length <= len(value):
            return
        if not flags & _NEXTHOP_DEAD:
            yield NextHop(device, _gateway(attribute_map(value[_NEXTHOP.size : length])))
        value = value[(length + 3) & ~3 :]


_ERRORS = {
    RTN_BLACKHOLE: errno.EINVAL,
    RTN_UNREACHABLE: errno.EHOSTUNREACH,
    RTN_PROHIBIT: errno.EACCES,
}


def _read_refusing(replies: Iterable[memoryview], family: Family) -> Iterator[RefusingRoute]:
    for reply in replies:
        if len(reply) < _RTMSG.size:
            continue
        of_family, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(reply)
        if of_family == _AF[family] and kind in REFUSALS:
            fields = attribute_map(reply[_RTMSG.size :])
            network = _network(fields.get(_RTA_DST), prefix, family)
            yield RefusingRoute(kind, _number(fields, _RTA_TABLE) or table, network)


def _read_refusing_nexthops(replies: Iterable[memoryview]) -> frozenset[int]:
    holes: set[int] = set()
    groups: dict[int, list[int]] = {}
    for reply in replies:
        fields = attribute_map(reply[_NHMSG.size :])
        number = _number(fields, _NHA_ID)
        if _NHA_BLACKHOLE in fields:
            holes.add(number)
        members = bytes(fields.get(_NHA_GROUP, b""))
        if members and len(members) % _NEXTHOP_GROUP.size == 0:
            groups[number] = [each[0] for each in _NEXTHOP_GROUP.iter_unpack(members)]
    return frozenset(holes | {each for each, within in groups.items() if holes.issuperset(within)})


def _read_nexthop_routes(
    replies: Iterable[memoryview], family: Family, nexthops: frozenset[int]
) -> Iterator[RefusingRoute]:
    for reply in replies:
        if len(reply) < _RTMSG.size:
            continue
        of_family, prefix, _, _, table, _, _, _, _ = _RTMSG.unpack_from(reply)
        fields = attribute_map(reply[_RTMSG.size :])
        number = _number(fields, _RTA_NH_ID)
        if of_family == _AF[family] and number in nexthops:
            network = _network(fields.get(_RTA_DST), prefix, family)
            table = _number(fields, _RTA_TABLE) or table
            yield RefusingRoute(RTN_BLACKHOLE, table, network, number)


def _read_rules(replies: Iterable[memoryview], family: Family) -> Iterator[Rule]:
    for reply in replies:
        if len(reply) < _RULE.size:
            continue
        of_family, to_bits, from_bits, _, table, _, _, action, flags = _RULE.unpack_from(reply)
        if of_family != _AF[family]:
            continue
        fields = attribute_map(reply[_RULE.size :])
        mark = _number(fields, _FRA_FWMARK)
        yield Rule(
            family,
            _number(fields, _FRA_PRIORITY),
            action,
            _number(fields, _FRA_TABLE) or table,
            _network(fields.get(_FRA_SRC), from_bits, family) if from_bits else None,
            _network(fields.get(_FRA_DST), to_bits, family) if to_bits else None,
            mark,
            _number(fields, _FRA_FWMASK),
            text(fields.get(_FRA_IFNAME, memoryview(b""))),
            text(fields.get(_FRA_OIFNAME, memoryview(b""))),
            inverted=bool(flags & _FIB_RULE_INVERT),
            protocol=next(iter(fields.get(_FRA_IP_PROTO, b"")), 0),
            source_ports=_range(fields, _FRA_SPORT, _PORTS),
            ports=_range(fields, _FRA_DPORT, _PORTS),
            uids=_range(fields, _FRA_UID_RANGE, _UIDS),
            goto=_number(fields, _FRA_GOTO),
        )


def _range(
    fields: Mapping[int, memoryview], kind: int, layout: struct.Struct
) -> tuple[int, int] | None:
    value = fields.get(kind, b"")
    if len(value) != layout.size:
        return None
    first, last = layout.unpack(value)
    return int(first), int(last)


def _gateway(fields: Mapping[int, memoryview]) -> Address | None:
    # RTA_VIA: an IPv4 route over an IPv6 neighbour, its address after a family of 2 bytes.
    via = fields.get(_RTA_VIA)
    return _address(via[2:]) if via is not None else _address(fields.get(_RTA_GATEWAY))


def _address(value: memoryview | None) -> Address | None:
    return Address(bytes(value)) if value is not None and len(value) in (4, 16) else None


def _network(value: memoryview | None, prefix: int, family: Family) -> Network:
    return Network(_address(value) or Address(bytes(family.bits // 8)), prefix)


def _number(fields: Mapping[int, memoryview], kind: int) -> int:
    value = fields.get(kind, b"")
    return int(_NUMBER.unpack(value)[0]) if len(value) == _NUMBER.size else 0
