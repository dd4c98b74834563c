"""The devices and next hops on the way of a Service's packets and of their replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from pyproxy.hostnet.packet import PacketPath
from pyproxy.hostnet.routes import OtherHop, RouteFacts
from pyproxy.inspect.explain.findings import Finding, doubt, fault
from pyproxy.inspect.humanize import duration
from pyproxy.model.address import Address, address_text
from pyproxy.netlink.links import Link
from pyproxy.netlink.routing import (
    NUD_FAILED,
    NUD_INCOMPLETE,
    NUD_PERMANENT,
    Neighbour,
    RouteReply,
)

_RECENT = 60.0
"""Seconds after which a neighbour that did not answer may be back, unless a packet asks again."""

_WITH_NEIGHBOURS = ("", "bridge", "veth", "vlan", "bond")
"""The kinds of devices whose neighbours answer ARP or neighbour discovery; "" is hardware."""


class Hop(msgspec.Struct, frozen=True):
    """A next hop: its name in a sentence, its address and device, and the kernel's entry for it."""

    what: str
    address: Address
    device: int
    neighbour: Neighbour | None


def hop_text(part: RouteFacts, reply: RouteReply) -> str:
    """Return the next hop of a route, as "172.30.0.1 on eth0"."""
    device = part.devices.name(reply.device)
    return f"{address_text(reply.gateway)} on {device}" if reply.gateway else device


def device_findings(path: PacketPath, link: Link, way: str, target: Address) -> Iterator[Finding]:
    """Find a device that sends no packets to a target; `way` is such as "the way to {}"."""
    if not link.up:
        yield fault(path, f"{link.name}, {way}, is down", f"run ip link set {link.name} up")
    elif link.name == "lo":
        yield fault(
            path,
            f"the route {way.removeprefix('the way ')} is by lo: packets do not leave this node",
            f"remove it: ip route del {address_text(target)} dev lo",
        )
    elif link.kind == "dummy":
        yield fault(
            path,
            f"{link.name}, {way}, is a dummy, which drops all packets",
            f"correct the route: ip route get {address_text(target)}",
        )
    elif not link.arp and link.kind in _WITH_NEIGHBOURS:
        yield fault(
            path,
            f"{link.name}, {way}, does not use ARP or neighbour discovery (NOARP)",
            f"run ip link set {link.name} arp on",
        )
    elif not link.carrier:
        yield fault(
            path,
            f"{link.name}, {way}, has no carrier",
            f"check the cable or the other end: ip link show {link.name}",
        )


def neighbour_findings(part: RouteFacts, path: PacketPath, hop: Hop) -> Iterator[Finding]:
    """Find a next hop that does not answer, or whose link address the kernel does not check."""
    found = hop.neighbour
    if found is None or not found.state & (NUD_FAILED | NUD_INCOMPLETE | NUD_PERMANENT):
        return
    address, device = address_text(hop.address), part.devices.name(hop.device)
    protocol = "ARP" if len(hop.address) == 4 else "neighbour discovery"
    if found.state & NUD_PERMANENT:
        link = part.devices.links.get(hop.device)
        # Tunnels have permanent entries for their other ends.
        if link and link.kind in _WITH_NEIGHBOURS:
            yield doubt(
                path,
                f"the neighbour entry of {address} on {device} is permanent: the kernel never asks "
                "whether its link address is right",
            )
    elif found.state & NUD_INCOMPLETE:
        yield doubt(path, f"{address} has not answered {protocol} on {device} yet")
    elif found.age > _RECENT:
        yield doubt(
            path,
            f"{address} did not answer {protocol} on {device} {duration(found.age)} ago, and no "
            "packet has asked since",
        )
    else:
        yield fault(
            path,
            f"{hop.what} does not answer {protocol}: {address} on {device}",
            f"check the node or router {address}, and the network between"
            if "next hop" in hop.what
            else "check that this address exists: the node may be down or the pod gone",
        )


def other_hops(
    part: RouteFacts, path: PacketPath, others: Sequence[OtherHop], target: Address, end: str
) -> Iterator[Finding]:
    """Find further next hops that do not work; `end` is where they lead to, such as "{}"."""
    for other in others:
        device, address = other.hop.device, other.hop.gateway or target
        hop = Hop(f"one of the next hops to {end}", address, device, other.neighbour)
        findings = list(neighbour_findings(part, path, hop))
        link = part.devices.links.get(device)
        if link is not None:
            findings += device_findings(path, link, f"one of the ways to {end}", target)
        for each in findings:
            message = f"{each.message}: a part of the connections may be lost"
            yield msgspec.structs.replace(each, message=message)
