"""Read all facts about the way of a Service's packets.

Apart from the facts, because it imports every reader, which only commands and the page need.
"""

from __future__ import annotations

from functools import partial

from pyproxy.hostnet.devices import Devices
from pyproxy.hostnet.firewall.facts import FirewallFacts, read_firewalls
from pyproxy.hostnet.marked_routes import MarkedRoute, read_marked_routes
from pyproxy.hostnet.not_read import NotRead, read_part
from pyproxy.hostnet.packet import ServicePaths
from pyproxy.hostnet.path_facts import PathFacts
from pyproxy.hostnet.probes import probe
from pyproxy.hostnet.proxies import read_proxies
from pyproxy.hostnet.routes import RouteFacts, read_routes
from pyproxy.hostnet.switches import read_switches
from pyproxy.hostnet.transforms import read_transforms


def read_path(paths: ServicePaths, *, connect: bool = False) -> PathFacts:
    """Read all parts in the caller's network namespace; `connect` also probes.

    Blocks for the kernel, and with `connect` for connections. Raises nothing that a reader does.
    """
    if not paths.paths:
        unread = NotRead(paths.reason)
        return PathFacts(
            paths,
            switches=unread,
            routes=unread,
            firewalls=unread,
            proxies=unread,
            transforms=unread,
        )
    routes = read_part(partial(read_routes, paths))
    # The routes name the devices, which sysctls and firewalls depend on.
    devices = Devices()
    if isinstance(routes, RouteFacts):
        paths, devices = routes.paths, routes.devices
    firewalls = read_part(partial(read_firewalls, paths, devices))
    marked: tuple[MarkedRoute, ...] | NotRead = ()
    if isinstance(firewalls, FirewallFacts) and firewalls.marked:
        marked = read_part(partial(read_marked_routes, firewalls.marked, devices))
    return PathFacts(
        paths,
        switches=read_part(partial(read_switches, paths, devices)),
        routes=routes,
        firewalls=firewalls,
        proxies=read_part(partial(read_proxies, paths)),
        transforms=read_part(partial(read_transforms, paths, devices)),
        marked=marked,
        probes=read_part(partial(probe, paths)) if connect else PathFacts().probes,
    )
