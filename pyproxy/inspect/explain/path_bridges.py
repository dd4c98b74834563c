"""The ports of this node's bridges, as far as packets between pods need them."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.hostnet.devices import PODS
from pyproxy.hostnet.packet import Origin, PacketPath
from pyproxy.hostnet.routes import RouteFacts
from pyproxy.inspect.explain.findings import Finding, doubt, fault
from pyproxy.inspect.humanize import listed
from pyproxy.netlink.links import FORWARDING, Link

_STATES = {0: "disabled", 1: "listening", 2: "learning", 4: "blocking"}


def bridge_ports(part: RouteFacts, path: PacketPath, *, bridged: bool) -> Iterator[Finding]:
    """Find ports of the bridge to a pod here that do not pass its packets.

    `bridged` is true if netfilter sees bridged packets, so that a bridge forwards them itself
    between two pods after the translation.
    """
    bridge = part.devices.named(path.leaving.out_device or "")
    if not path.local or bridge is None or bridge.kind != "bridge":
        return
    ports = _ports(part, bridge)
    if not ports:
        yield fault(
            path,
            f"{bridge.name}, the bridge of {{}}, has no port of a pod",
            f"check the network plugin, which adds pods to it: bridge link show master "
            f"{bridge.name}",
        )
    yield from _whole(part, bridge, path, "{}")
    yield from _blocked(bridge, path, ports)
    if path.origin is Origin.POD and bridged and path.leaving.in_device == bridge.name:
        yield from _between_pods(bridge, path, ports)


def client_port(part: RouteFacts, path: PacketPath, client: str) -> Iterator[Finding]:
    """Find ports of the bridge of a client's pod here that do not pass its packets."""
    bridge = part.devices.named(path.leaving.in_device or "")
    if path.origin is not Origin.POD or bridge is None or bridge.kind != "bridge":
        return
    yield from _whole(part, bridge, path, client)
    for port, state in _not_forwarding(_ports(part, bridge)):
        yield doubt(
            path,
            f"{port.name}, a port of {bridge.name}, does not forward (state {state}): packets of "
            f"its pod, which may be {client}, do not pass",
        )


def _ports(part: RouteFacts, bridge: Link) -> list[Link]:
    return [
        link
        for link in part.devices.links.values()
        if link.master == bridge.index and link.kind in PODS and link.port is not None
    ]


def _lost(part: RouteFacts) -> list[str]:
    """Return the ends of pods' cables that are in no bridge, as far as that can be told."""
    used = set(part.devices.with_address)
    for route in part.routes:
        replies = (route.forward, route.plain, route.back, route.reverse)
        used |= {reply.device for reply in replies if reply is not None}
    return [
        link.name
        for link in part.devices.links.values()
        if link.kind == "veth" and link.peer_elsewhere and link.up
        if not link.master and link.index not in used
    ]


def _whole(part: RouteFacts, bridge: Link, path: PacketPath, pod: str) -> Iterator[Finding]:
    """Find ports that may be a pod's, and do not pass its packets."""
    ports = _ports(part, bridge)
    lost = _lost(part)
    if lost:
        yield doubt(
            path,
            f"{listed(lost, 3)} belongs to no bridge and has no address: its pod, which may be "
            f"{pod}, is not reached unless a route leads there",
        )
    down = [port.name for port in ports if not port.up]
    if down:
        yield doubt(
            path,
            f"{listed(down, 3)}, a port of {bridge.name}, is down: its pod, which may be {pod}, is "
            "not reached",
        )
    locked = [port.name for port in ports if port.port and port.port.locked]
    if locked:
        yield doubt(
            path,
            f"{listed(locked, 3)}, a port of {bridge.name}, is locked: packets of its pod, which "
            f"may be {pod}, pass only with an entry in the bridge's forwarding table",
        )


def _not_forwarding(ports: list[Link]) -> Iterator[tuple[Link, str]]:
    for port in ports:
        if port.up and port.carrier and port.port and port.port.state != FORWARDING:
            yield port, _STATES.get(port.port.state, str(port.port.state))


def _blocked(bridge: Link, path: PacketPath, ports: list[Link]) -> Iterator[Finding]:
    for port, state in _not_forwarding(ports):
        yield fault(
            path,
            f"{port.name}, a port of {bridge.name}, does not forward (state {state}): its pod "
            "is not reached",
            f"run bridge link set dev {port.name} state {FORWARDING}, or switch STP off: ip "
            f"link set {bridge.name} type bridge stp_state 0",
        )


def _between_pods(bridge: Link, path: PacketPath, ports: list[Link]) -> Iterator[Finding]:
    isolated = [port.name for port in ports if port.port and port.port.isolated]
    if len(isolated) > 1:
        yield doubt(
            path,
            f"ports of {bridge.name} are isolated from each other ({listed(isolated, 3)}): packets "
            "from a pod behind one of them to {} do not pass if it is behind another",
        )
    without = [port.name for port in ports if port.port and not port.port.hairpin]
    if without and not path.masqueraded:
        yield doubt(
            path,
            f"ports of {bridge.name} are without hairpin mode ({listed(without, 3)}): {{}} does "
            "not reach itself through the Service",
        )
