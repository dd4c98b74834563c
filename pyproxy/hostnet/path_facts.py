"""All facts about the way of a Service's packets beyond pyproxy's own rules."""

from __future__ import annotations

from functools import partial

import msgspec

from pyproxy.hostnet.devices import Devices
from pyproxy.hostnet.firewall.facts import FirewallFacts, read_firewalls
from pyproxy.hostnet.not_read import NotRead, read_part
from pyproxy.hostnet.packet import ServicePaths
from pyproxy.hostnet.probes import ProbeFacts, probe
from pyproxy.hostnet.proxies import ProxyFacts, read_proxies
from pyproxy.hostnet.routes import RouteFacts, read_routes
from pyproxy.hostnet.switches import SwitchFacts, read_switches

_UNREAD = NotRead("not read")


class PathFacts(msgspec.Struct, frozen=True):
    """The paths with their devices as far as they are known, and each part's facts."""

    paths: ServicePaths = ServicePaths(reason="not read")
    switches: SwitchFacts | NotRead = _UNREAD
    routes: RouteFacts | NotRead = _UNREAD
    firewalls: FirewallFacts | NotRead = _UNREAD
    proxies: ProxyFacts | NotRead = _UNREAD
    probes: ProbeFacts | NotRead = NotRead("without --probe no connection is made")


def read_path(paths: ServicePaths, *, connect: bool = False) -> PathFacts:
    """Read all parts in the caller's network namespace; `connect` also probes.

    Blocks for the kernel, and with `connect` for connections. Raises nothing that a reader does.
    """
    if not paths.paths:
        unread = NotRead(paths.reason)
        return PathFacts(paths, unread, unread, unread, unread, unread)
    routes = read_part(partial(read_routes, paths))
    # The routes name the devices, which sysctls and firewalls depend on.
    devices = Devices()
    if isinstance(routes, RouteFacts):
        paths, devices = routes.paths, routes.devices
    return PathFacts(
        paths,
        read_part(partial(read_switches, paths, devices)),
        routes,
        read_part(partial(read_firewalls, paths, devices)),
        read_part(partial(read_proxies, paths)),
        read_part(partial(probe, paths)) if connect else PathFacts().probes,
    )
