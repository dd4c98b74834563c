"""The route or policy rule that refuses a packet."""

from __future__ import annotations

import errno

import msgspec

from pyproxy.hostnet.packet import FirstPacket
from pyproxy.hostnet.routes import RouteFacts
from pyproxy.model.address import Address, Mark, Protocol, family_of
from pyproxy.netlink.routing import (
    REFUSALS,
    RTN_BLACKHOLE,
    RTN_PROHIBIT,
    RTN_UNREACHABLE,
    RULE_GOTO,
    RefusingRoute,
    Rule,
)

_PROTOCOLS = {protocol.value: protocol.name.lower() for protocol in Protocol}
_TABLES = {253: "default", 254: "main", 255: "local"}
# A rule's action `unreachable` returns ENETUNREACH, a route's EHOSTUNREACH.
_ERRORS = {
    RTN_BLACKHOLE: (errno.EINVAL,),
    RTN_UNREACHABLE: (errno.EHOSTUNREACH, errno.ENETUNREACH),
    RTN_PROHIBIT: (errno.EACCES,),
}


def refusal(
    part: RouteFacts, packet: FirstPacket, error: int, *, destination: Address | None = None
) -> str:
    """Return the route or rule that refuses a packet with this errno, as `ip` prints it.

    `destination` replaces the packet's own, as for a reply, which has no mark. Empty if there is
    none, as for a packet without a route.
    """
    routed = _routed(packet, destination)
    kinds = [kind for kind, errors in _ERRORS.items() if error in errors]
    go_on = 0
    for rule in part.rules:
        if rule.priority < go_on or not _matches(rule, routed):
            continue
        if rule.action == RULE_GOTO:
            go_on = rule.goto
            continue
        if rule.action in REFUSALS:
            return _rule_text(rule) if rule.action in kinds else ""
        found = [
            route
            for route in part.refusing
            if route.table == rule.table and route.kind in kinds
            if routed.destination in route.network
        ]
        if found:
            return _route_text(max(found, key=lambda route: route.network.prefix))
    return ""


class _Routed(msgspec.Struct, frozen=True):
    """The fields of a packet that policy rules test; None is unknown.

    `device` is where it arrives, lo for this node's own packets as in the kernel.
    """

    destination: Address
    source: Address | None
    mark: Mark
    device: str
    protocol: Protocol
    port: int | None
    source_port: int | None


def _routed(packet: FirstPacket, client: Address | None) -> _Routed:
    """Return a packet, or with a client the reply to it, as policy rules see it."""
    if client is None:
        return _Routed(
            packet.destination,
            packet.sample,
            packet.mark,
            "lo" if packet.in_device is None else packet.in_device,
            packet.protocol,
            packet.port,
            None,
        )
    return _Routed(
        client,
        packet.destination,
        Mark(0),
        packet.out_device or "",
        packet.protocol,
        None,
        packet.port,
    )


def _route_text(route: RefusingRoute) -> str:
    network = str(route.network) if route.network.prefix else "default"
    table = _TABLES.get(route.table, str(route.table))
    if route.nexthop:
        return f"the route {network} nhid {route.nexthop} (table {table}), a blackhole nexthop,"
    return f"the route {REFUSALS[route.kind]} {network} (table {table})"


def _matches(rule: Rule, packet: _Routed) -> bool:
    if family_of(packet.destination) is not rule.family:
        return False
    return _fits(rule, packet) != rule.inverted


def _fits(rule: Rule, packet: _Routed) -> bool:
    source, mask = packet.source, rule.mask
    return not (
        (mask and packet.mark & mask != rule.mark)
        or (rule.in_device and rule.in_device != packet.device)
        or rule.out_device
        or (rule.destination and packet.destination not in rule.destination)
        or (rule.source and (source is None or source not in rule.source))
        or (rule.protocol and rule.protocol != packet.protocol)
        or not _within(packet.port, rule.ports)
        or not _within(packet.source_port, rule.source_ports)
        # Received packets, and the lookups of explain, are root's.
        or not _within(0, rule.uids)
    )


def _within(value: int | None, limits: tuple[int, int] | None) -> bool:
    return limits is None or (value is not None and limits[0] <= value <= limits[1])


def _rule_text(rule: Rule) -> str:
    parts = [f"the policy rule {rule.priority}:"]
    if rule.inverted:
        parts.append("not")
    parts.append(f"from {rule.source}" if rule.source else "from all")
    if rule.destination:
        parts.append(f"to {rule.destination}")
    if rule.mask:
        mask = "" if rule.mask == 0xFFFFFFFF else f"/{rule.mask:#x}"
        parts.append(f"fwmark {rule.mark:#x}{mask}")
    if rule.in_device:
        parts.append(f"iif {rule.in_device}")
    if rule.uids:
        parts.append(f"uidrange {rule.uids[0]}-{rule.uids[1]}")
    if rule.protocol:
        parts.append(f"ipproto {_PROTOCOLS.get(rule.protocol, rule.protocol)}")
    parts += [
        f"{name} {limits[0]}" + (f"-{limits[1]}" if limits[1] != limits[0] else "")
        for name, limits in (("sport", rule.source_ports), ("dport", rule.ports))
        if limits
    ]
    return " ".join([*parts, REFUSALS[rule.action]])
