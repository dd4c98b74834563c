"""All facts about the way of a Service's packets beyond pyproxy's own rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import ServicePaths

if TYPE_CHECKING:
    # An agent never has these facts, and imports none of their readers.
    from pyproxy.hostnet.firewall.facts import FirewallFacts
    from pyproxy.hostnet.marked_routes import MarkedRoute
    from pyproxy.hostnet.probes import ProbeFacts
    from pyproxy.hostnet.proxies import ProxyFacts
    from pyproxy.hostnet.routes import RouteFacts
    from pyproxy.hostnet.switches import SwitchFacts
    from pyproxy.hostnet.transforms import TransformFacts

_UNREAD = NotRead("not read")


class PathFacts(msgspec.Struct, frozen=True):
    """The paths with their devices as far as they are known, and each part's facts.

    `marked` are the routes of packets on which other programs set a mark.
    """

    paths: ServicePaths = ServicePaths(reason="not read")
    switches: SwitchFacts | NotRead = _UNREAD
    routes: RouteFacts | NotRead = _UNREAD
    firewalls: FirewallFacts | NotRead = _UNREAD
    proxies: ProxyFacts | NotRead = _UNREAD
    transforms: TransformFacts | NotRead = _UNREAD
    marked: tuple[MarkedRoute, ...] | NotRead = ()
    probes: ProbeFacts | NotRead = NotRead("without --probe no connection is made")
