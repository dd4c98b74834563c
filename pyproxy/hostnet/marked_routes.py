"""The routes of packets on which other programs' rules set a mark, for policy rules by mark."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import msgspec

from pyproxy.hostnet.devices import Devices
from pyproxy.hostnet.packet import MarkedPacket, Origin
from pyproxy.model.address import Mark
from pyproxy.netlink.routing import RouteQuery, RouteReply, Routing, Rule


class MarkedRoute(msgspec.Struct, frozen=True):
    """The route of a packet with a mark, and the usual one, which it has without.

    `mark` is the packet's own, or if it is not `certain` one that it may have.
    """

    packet: MarkedPacket
    mark: Mark
    route: RouteReply
    usual: RouteReply

    @property
    def certain(self) -> bool:
        """Whether the packet has this mark in any case."""
        return not self.packet.unknown


def read_marked_routes(
    packets: Sequence[MarkedPacket], devices: Devices
) -> tuple[MarkedRoute, ...]:
    """Look up the routes of packets with their marks. Blocks. Raises KernelError."""
    replies: dict[RouteQuery, RouteReply] = {}
    found = []
    with closing(Routing()) as routing:

        def reply(query: RouteQuery) -> RouteReply:
            if query not in replies:
                replies[query] = routing.route(query)
            return replies[query]

        families = {p.path.leaving.family for p in packets if p.unknown}
        rules = [rule for family in families for rule in routing.rules(family)]
        for packet in packets:
            own = Mark(0) if packet.is_reply else packet.path.leaving.mark
            usual = reply(_query(packet, own, devices))
            for mark in possible_marks(packet, rules):
                if mark != own:
                    route = reply(_query(packet, mark, devices))
                    found.append(MarkedRoute(packet, mark, route, usual))
    return tuple(found)


def possible_marks(packet: MarkedPacket, rules: Sequence[Rule]) -> list[Mark]:
    """Return the packet's mark, or one for each policy rule that its unknown bits may match."""
    if not packet.unknown:
        return [packet.mark]
    family, known = packet.path.leaving.family, ~packet.unknown
    matching = {
        Mark(packet.mark | (rule.mark & packet.unknown)): None
        for rule in rules
        if rule.family is family and rule.mask & packet.unknown
        if not (rule.mark ^ packet.mark) & rule.mask & known
    }
    # The known bits may already differ from those that the packet usually has.
    return list(matching | {packet.mark: None})


def _query(packet: MarkedPacket, mark: Mark, devices: Devices) -> RouteQuery:
    path = packet.path
    leaving = path.leaving
    name = leaving.out_device if packet.is_reply else leaving.in_device
    link = devices.named(name or "")
    # The kernel takes no received packet without a source, and no foreign source without a device.
    known = leaving.sample is not None and (link is not None or path.origin is Origin.NODE)
    device = link.index if link and known else 0
    if packet.is_reply:
        target = leaving.sample or leaving.destination
        return RouteQuery(target, leaving.destination if device else None, device, mark)
    source = leaving.sample if device else None
    return RouteQuery(leaving.destination, source, device, mark, leaving.protocol, leaving.port)
