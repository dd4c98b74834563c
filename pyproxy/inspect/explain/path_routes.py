"""The routes and neighbours on the way of a Service's packets."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import Origin, PacketPath
from pyproxy.hostnet.routes import PathRoutes, RouteFacts
from pyproxy.inspect.explain.findings import Finding, doubt, fault, merged
from pyproxy.inspect.explain.path_bridges import bridge_ports, client_port
from pyproxy.inspect.explain.path_clients import client_device, client_route
from pyproxy.inspect.explain.path_hops import (
    Hop,
    device_findings,
    hop_text,
    neighbour_findings,
    other_hops,
)
from pyproxy.inspect.explain.path_marks import marks
from pyproxy.inspect.explain.path_switches import (
    forwarding_off,
    ipv6_off,
    is_forwarded,
    is_troubled,
)
from pyproxy.inspect.explain.refusals import refusal
from pyproxy.inspect.explain.source_validation import rejected_by_rp_filter
from pyproxy.inspect.explain.step import Result, Step, not_checked
from pyproxy.inspect.facts import Facts
from pyproxy.inspect.humanize import listed
from pyproxy.model.address import Family, address_text, backend_text
from pyproxy.netlink.links import Link
from pyproxy.netlink.routing import RTN_LOCAL, RTN_UNICAST, NextHop, RouteReply

NAME = "routes"
_MAIN = 254
_IPV6_MTU = 1280
_ADD_ROUTES = "check the network plugin on this node, which adds a route for each node"
_INSIDE = ("veth", "tun", "dummy")
"""The kinds of a bridge's ports that lead to no other machine."""

_OVERHEAD = {"vxlan": 50, "geneve": 50, "ipip": 20, "gre": 24, "sit": 20, "wireguard": 60}
"""Bytes that a tunnel over IPv4 adds to a packet at least."""


def routes(facts: Facts) -> Step:
    """Check that the kernel has a working route for each packet and its reply."""
    part = facts.path.routes
    if isinstance(part, NotRead):
        return not_checked(NAME, part)
    findings = [finding for each in part.routes for finding in _findings(facts, part, each)]
    findings += _further(part)
    findings += marks(facts.path.marked, part.devices)
    for each in part.routes:
        findings += bridge_ports(part, each.path, bridged=_bridged(facts, each.path))
        if facts.client:
            findings += client_port(part, each.path, address_text(facts.client))
    return merged(NAME, findings, f"{facts.path.paths}: {_ways(part)}")


def _bridged(facts: Facts, path: PacketPath) -> bool:
    switches = facts.path.switches
    name = "iptables" if path.leaving.family is Family.IPV4 else "ip6tables"
    if isinstance(switches, NotRead):
        return False
    return bool(switches.get(f"bridge.bridge-nf-call-{name}"))


def _further(part: RouteFacts) -> Iterator[Finding]:
    """Find endpoints of other nodes without a route, among those that are not examined further."""
    for each in part.further:
        code = errno.errorcode.get(each.reply.error, str(each.reply.error))
        if each.reply.error:
            why = f"from this node ({code})"
        elif each.by_default and part.pod_routes:
            why = f"but the default, while there is one to other pods ({part.pod_routes[0]})"
        else:
            continue
        yield Finding(
            Result.FAILED, f"no route to {{}} {why}", _ADD_ROUTES, backend_text(each.endpoint)
        )


def _ways(part: RouteFacts) -> str:
    ways: dict[str, None] = {}
    for each in part.routes:
        where = str(each.network) if each.network else address_text(each.path.leaving.destination)
        if each.forward.error:
            continue
        if each.forward.kind == RTN_LOCAL:
            ways[f"{where} is this node's"] = None
        else:
            hops = [NextHop(each.forward.device, each.forward.gateway)]
            hops += [other.hop for other in each.others]
            # A lookup takes any of several next hops, so their order would vary.
            texts = sorted(_hop(part, hop) for hop in hops)
            ways[f"{where} {' or '.join(texts)}"] = None
    return listed(list(ways), 3)


def _hop(part: RouteFacts, hop: NextHop) -> str:
    via = f"via {address_text(hop.gateway)} " if hop.gateway else ""
    return f"{via}on {part.devices.name(hop.device)}"


def _findings(facts: Facts, part: RouteFacts, each: PathRoutes) -> Iterator[Finding]:
    before = list(client_device(part, each, facts.client))
    yield from before
    if any(finding.result is Result.FAILED for finding in before):
        return
    switches = facts.path.switches
    if not isinstance(switches, NotRead):
        # The step before names these causes of the kernel's errors.
        off = is_forwarded(each.path) and forwarding_off(each.path, switches)
        without_ipv6 = is_troubled(each) and ipv6_off(switches)
        if off or without_ipv6 or rejected_by_rp_filter(each, part, switches):
            yield doubt(each.path, "the route to {} is not known while a sysctl stops the packets")
            return
    if each.connect and each.connect.error:
        yield _no_route(part, each, each.connect, "to its frontend")
    elif each.forward.error:
        yield _no_route(part, each, each.forward, "")
    else:
        yield from _way(part, each)
        if each.back and each.back.error:
            yield _no_way_back(part, each, each.back)
        else:
            yield from client_route(part, each, facts.client)


def _no_route(part: RouteFacts, each: PathRoutes, reply: RouteReply, where: str) -> Finding:
    path = each.path
    packet = path.arriving if where else path.leaving
    sender = "packets from " + path.origin.value
    if where:
        sender = f"this node's own packets to {packet}, which it routes before translation"
    found = refusal(part, packet, reply.error)
    if found and where:
        refused = f"{found} refuses this node's own packets to {packet}"
        return fault(
            path,
            f"{refused}, which it routes before translation: they do not reach {{}}",
            f"remove {found}, or leave this node's own packets out of it",
        )
    if found:
        return fault(path, f"{found} refuses {{}}: {sender} do not pass", f"remove {found}")
    code = errno.errorcode.get(reply.error, str(reply.error))
    down = _devices_down(part)
    if down:
        return fault(
            path,
            f"no route to {{}} for {sender} ({code}): {listed(down)} is down",
            f"run ip link set {down[0]} up, and add the routes that were lost with it",
        )
    target = address_text(packet.destination)
    if where:
        fix = (
            f"add a default route: any route to {target} will do, because rules translate the "
            "packet afterwards"
        )
        return fault(path, f"no route to {{}} for {sender} ({code})", fix)
    return fault(
        path,
        f"no route to {{}} for {sender} ({code})",
        f"compare ip route get {target} and ip rule with another node; the network plugin adds "
        "routes to pods",
    )


def _devices_down(part: RouteFacts) -> list[str]:
    """Return the devices that have an address and are down."""
    with_address = set(part.devices.by_address.values())
    return sorted(
        link.name
        for link in part.devices.links.values()
        # The device of service addresses is a dummy, and down on purpose.
        if not link.up and link.index in with_address and link.kind != "dummy"
    )


def _no_way_back(part: RouteFacts, each: PathRoutes, reply: RouteReply) -> Finding:
    client = each.path.leaving.sample
    to_client = f" to {address_text(client)}" if client else ""
    code = errno.errorcode.get(reply.error, str(reply.error))
    found = ""
    if client:
        packet = each.path.leaving
        found = refusal(part, packet, reply.error, destination=client)
    why = f"{found} refuses them" if found else f"there is no route ({code})"
    return fault(
        each.path,
        f"replies of {{}}{to_client} do not pass: {why}",
        f"remove {found}" if found else f"add a route{to_client} on this node",
    )


def _way(part: RouteFacts, each: PathRoutes) -> Iterator[Finding]:
    path, reply = each.path, each.forward
    link = part.devices.links.get(reply.device)
    if reply.kind == RTN_LOCAL:
        # An endpoint without a node may be an address that several nodes have in turn.
        own = path.leaving.destination in part.paths.node_addresses
        if path.node and not path.local and not own:
            yield fault(
                path,
                f"{{}} is an address of this node ({part.devices.name(reply.device)}), but its "
                f"endpoint is on {path.node}: packets do not leave this node",
                "remove the address from this node",
            )
        loopback = part.devices.named("lo")
        if path.origin is Origin.NODE and loopback is not None and not loopback.up:
            yield fault(
                path,
                "lo is down: this node does not reach its own addresses, so not {}",
                "run ip link set lo up",
            )
        return
    if reply.kind != RTN_UNICAST:
        yield fault(path, "{} is a broadcast address here", "correct the address of the endpoint")
        return
    if link is not None:
        yield from device_findings(path, link, "the way to {}", path.leaving.destination)
        yield from _bridge_here(part, each, link)
    what = "the next hop to {}" if reply.gateway else "{}"
    if each.others:
        what = "one of the next hops to {}"
    hop = reply.gateway or path.leaving.destination
    yield from neighbour_findings(part, path, Hop(what, hop, reply.device, each.neighbour))
    yield from other_hops(part, path, each.others, path.leaving.destination, "{}")
    diverted = list(_diverted(part, each))
    yield from diverted
    if not diverted:
        yield from _default(part, each)
    if link is not None:
        yield from _mtu(part, each, link)


def _bridge_here(part: RouteFacts, each: PathRoutes, link: Link) -> Iterator[Finding]:
    """Find a network of another node that a bridge of this one has as well."""
    path = each.path
    if link.kind != "bridge" or each.forward.gateway or path.local or not path.node:
        return
    ports = [other for other in part.devices.links.values() if other.master == link.index]
    if all(port.kind in _INSIDE for port in ports):
        yield fault(
            path,
            f"{{}} is on {path.node}, but {link.name} has its network {each.network} too: packets "
            "do not leave this node",
            f"give {link.name} another network, or remove it; Docker's is in "
            "/etc/docker/daemon.json",
        )


def _diverted(part: RouteFacts, each: PathRoutes) -> Iterator[Finding]:
    """Find a policy rule that matches the mark by chance, and leads elsewhere."""
    mark, plain = each.path.leaving.mark, each.plain
    if not mark or plain.error or each.unmarked is None or each.unmarked.error:
        return
    before = (each.unmarked.device, each.unmarked.gateway)
    after = (each.forward.device, each.forward.gateway)
    if before == after:
        return
    yield fault(
        each.path,
        f"a policy rule diverts packets with the mark {mark:#x} to table {each.forward.table}: "
        f"they go to {{}} through {hop_text(part, each.forward)} instead of "
        f"{hop_text(part, each.unmarked)}",
        "see ip rule; change the rule's mark, or set --iptables-masquerade-bit to an unused bit",
    )


def _default(part: RouteFacts, each: PathRoutes) -> Iterator[Finding]:
    """Find pods that only the default route leads to."""
    if each.network is None or each.network.prefix:
        return
    path, hop = each.path, hop_text(part, each.forward)
    # A policy rule may have chosen the table by source, device or mark.
    table = "" if each.forward.table in (0, _MAIN) else f" of table {each.forward.table}"
    if path.local:
        yield fault(
            path,
            f"{{}} is on this node, but only the default route{table} leads to it, through {hop}",
            "check the pod's interface and its route: the network plugin adds them",
        )
    elif part.pod_routes:
        yield fault(
            path,
            f"no route to {{}}: only the default route{table} leads there, through {hop}, while "
            f"there is a route to other pods ({part.pod_routes[0]})",
            _ADD_ROUTES,
        )
    elif any(path.leaving.destination in network for network in part.paths.cluster_networks):
        yield doubt(
            path,
            f"only the default route leads to {{}}: {hop} must know the networks of all pods",
        )


def _mtu(part: RouteFacts, each: PathRoutes, link: Link) -> Iterator[Finding]:
    path = each.path
    if path.leaving.family is Family.IPV6 and 0 < link.mtu < _IPV6_MTU:
        yield fault(
            path,
            f"{link.name}, the way to {{}}, has MTU {link.mtu}, less than IPv6 needs ({_IPV6_MTU})",
            f"run ip link set {link.name} mtu {_IPV6_MTU} or more",
        )
    overhead = _OVERHEAD.get(link.kind, 0)
    lower = part.devices.links.get(link.lower) or _uplink(part, path)
    if overhead and lower and lower.index != link.index and link.mtu + overhead > lower.mtu > 0:
        yield fault(
            path,
            f"{link.name}, the way to {{}}, has MTU {link.mtu}, but {lower.name} below it leaves "
            f"only {lower.mtu - overhead} ({lower.mtu} less {overhead} for {link.kind}): large "
            "packets are lost",
            f"set the MTU of the network plugin to {lower.mtu - overhead} or less",
        )
        return
    sender = part.devices.named(path.leaving.in_device or "")
    # A bridge without pods has an MTU that says nothing about them.
    if path.origin is not Origin.POD or path.local or sender is None or not sender.carrier:
        return
    # A route with an MTU of its own was configured with one, and pods usually have it too.
    if not each.forward.mtu and 0 < link.mtu < sender.mtu:
        yield fault(
            path,
            f"{link.name}, the way to {{}}, has MTU {link.mtu}, less than the pods' {sender.name} "
            f"({sender.mtu}): large packets pass only if path MTU discovery works",
            f"set the MTU of {link.name} to {sender.mtu}, or that of the pods to {link.mtu}",
        )


def _uplink(part: RouteFacts, path: PacketPath) -> Link | None:
    index = part.devices.of_any(part.paths.node_addresses, path.leaving.family)
    return part.devices.links.get(index)
