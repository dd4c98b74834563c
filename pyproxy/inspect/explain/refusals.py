"""The route or policy rule that refuses a packet."""

from __future__ import annotations

import errno

from pyproxy.hostnet.packet import FirstPacket
from pyproxy.hostnet.routes import RouteFacts
from pyproxy.model.address import Address, Mark, family_of
from pyproxy.netlink.routing import REFUSALS, RTN_BLACKHOLE, RTN_PROHIBIT, RTN_UNREACHABLE, Rule

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
    target = destination or packet.destination
    mark = packet.mark if destination is None else Mark(0)
    source = packet.sample if destination is None else packet.destination
    device = packet.in_device if destination is None else packet.out_device
    kinds = [kind for kind, errors in _ERRORS.items() if error in errors]
    for rule in part.rules:
        if not _matches(rule, target, source, mark, device or ""):
            continue
        if rule.action in REFUSALS:
            return _rule_text(rule) if rule.action in kinds else ""
        found = [
            route
            for route in part.refusing
            if route.table == rule.table and route.kind in kinds and target in route.network
        ]
        if found:
            longest = max(found, key=lambda route: route.network.prefix)
            network = str(longest.network) if longest.network.prefix else "default"
            table = _TABLES.get(longest.table, str(longest.table))
            return f"the route {REFUSALS[longest.kind]} {network} (table {table})"
    return ""


def _matches(rule: Rule, target: Address, source: Address | None, mark: Mark, device: str) -> bool:
    if rule.mask and mark & rule.mask != rule.mark:
        return False
    if rule.in_device and rule.in_device != device:
        return False
    if rule.out_device or (rule.destination and target not in rule.destination):
        return False
    if family_of(target) is not rule.family:
        return False
    return not rule.source or (source is not None and source in rule.source)


def _rule_text(rule: Rule) -> str:
    parts = [f"the policy rule {rule.priority}:"]
    parts.append(f"from {rule.source}" if rule.source else "from all")
    if rule.destination:
        parts.append(f"to {rule.destination}")
    if rule.mask:
        mask = "" if rule.mask == 0xFFFFFFFF else f"/{rule.mask:#x}"
        parts.append(f"fwmark {rule.mark:#x}{mask}")
    if rule.in_device:
        parts.append(f"iif {rule.in_device}")
    return " ".join([*parts, REFUSALS[rule.action]])
