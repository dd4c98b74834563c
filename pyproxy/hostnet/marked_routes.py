"""The routes of packets on which other programs' rules set a mark, for policy rules by mark."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import msgspec

from pyproxy.hostnet.devices import Devices
from pyproxy.hostnet.packet import MarkedPacket, Origin
from pyproxy.model.address import Mark
from pyproxy.netlink.routing import RouteQuery, RouteReply, Routing


class MarkedRoute(msgspec.Struct, frozen=True):
    """The route of a packet with a mark, and the usual one, which it has without."""

    packet: MarkedPacket
    route: RouteReply
    usual: RouteReply


def read_marked_routes(
    packets: Sequence[MarkedPacket], devices: Devices
) -> tuple[MarkedRoute, ...]:
    """Look up the routes of packets with their marks. Blocks. Raises KernelError."""
    replies: dict[RouteQuery, RouteReply] = {}
    found = []
    with closing(Routing()) as routing:
        for packet in packets:
            pair = []
            for mark in (packet.mark, Mark(0) if packet.is_reply else packet.path.leaving.mark):
                query = _query(packet, mark, devices)
                if query not in replies:
                    replies[query] = routing.route(query)
                pair.append(replies[query])
            found.append(MarkedRoute(packet, *pair))
    return tuple(found)


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
