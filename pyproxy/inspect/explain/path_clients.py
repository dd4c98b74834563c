"""The client's side of the way of a Service's packets: where they arrive, and replies leave."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.hostnet.packet import Origin
from pyproxy.hostnet.routes import PathRoutes, RouteFacts
from pyproxy.inspect.explain.findings import Finding, doubt, fault
from pyproxy.inspect.explain.path_hops import (
    Hop,
    device_findings,
    hop_text,
    neighbour_findings,
    other_hops,
)
from pyproxy.inspect.explain.step import Result
from pyproxy.model.address import Address, address_text
from pyproxy.netlink.links import Link
from pyproxy.netlink.routing import RTN_LOCAL, RTN_UNICAST, RouteReply


def client_device(part: RouteFacts, each: PathRoutes, client: Address | None) -> Iterator[Finding]:
    """Find a device of the client that passes no packets, and a client with this node's address.

    Such packets are lost whatever the sysctls and routes.
    """
    path, sample = each.path, each.path.leaving.sample
    if path.origin is Origin.NODE or sample is None:
        return
    reverse = each.reverse
    if reverse and not reverse.error and reverse.kind == RTN_LOCAL:
        device = part.devices.name(part.devices.by_address.get(sample, reverse.device))
        yield fault(
            path,
            f"{address_text(sample)} is an address of this node too ({device}): the kernel drops "
            "packets that arrive with it, and replies to it do not leave this node",
            f"remove the address from this node: ip addr show to {address_text(sample)}",
        )
        return
    link = part.devices.named(path.leaving.in_device or "")
    if path.origin is not Origin.POD and each.to_client and not each.to_client.error:
        link = part.devices.links.get(each.to_client.device)
    # The way to the endpoint has been checked already.
    if link is None or link.index == each.forward.device:
        return
    # Without pods the bridge has no carrier, and needs none.
    if client is None and path.origin is Origin.POD and _has_no_pods(part, link):
        return
    for finding in device_findings(path, link, f"the way back to {_who(each, client)}", sample):
        yield _as_known(each, client, finding)


def client_route(part: RouteFacts, each: PathRoutes, client: Address | None) -> Iterator[Finding]:
    """Find replies that do not reach the client: by another device, or to a silent next hop."""
    path, sample, reply = each.path, each.path.leaving.sample, each.to_client
    if path.origin is Origin.NODE or sample is None or reply is None or reply.error:
        return
    if reply.kind != RTN_UNICAST:
        return
    if path.origin is Origin.POD:
        astray = list(_astray(part, each, reply, client))
        yield from astray
        if astray:
            return
    elif client is not None:
        yield from _other_way_back(part, each, reply)
    if client is None and path.origin is Origin.POD:
        return
    who = _who(each, client)
    what = f"the next hop to {who}" if reply.gateway else f"the client {who}"
    hop = Hop(what, reply.gateway or sample, reply.device, each.client_neighbour)
    findings = [
        *neighbour_findings(part, path, hop),
        *other_hops(part, path, each.client_others, sample, who),
    ]
    for finding in findings:
        yield _as_known(each, client, finding)


def _astray(
    part: RouteFacts, each: PathRoutes, reply: RouteReply, client: Address | None
) -> Iterator[Finding]:
    """Find replies to a pod of this node that go elsewhere."""
    path, sample = each.path, each.path.leaving.sample
    device, who = path.leaving.in_device, _who(each, client)
    fix = f"check the route to {who}, which the network plugin adds"
    if sample:
        fix += f": ip route get {address_text(sample)}"
    if device and part.devices.name(reply.device) != device:
        yield fault(
            path,
            f"replies of {{}} to {who} leave by {hop_text(part, reply)}, while the pods of this "
            f"node are on {device}",
            fix,
        )
    elif client and not device and each.client_network and not each.client_network.prefix:
        yield fault(
            path,
            f"{who} is in a network of this node's pods, but only the default route leads to it, "
            f"through {hop_text(part, reply)}",
            fix,
        )


def _other_way_back(part: RouteFacts, each: PathRoutes, reply: RouteReply) -> Iterator[Finding]:
    """Find a client whose packets arrive at this node's address, and whose replies go elsewhere."""
    leaving = each.path.leaving
    device = part.devices.name(reply.device)
    if each.back is None or not leaving.sample or not leaving.in_device:
        return
    if device != leaving.in_device:
        yield doubt(
            each.path,
            f"replies of {{}} to {address_text(leaving.sample)} leave by {device}, while its "
            f"packets arrive on {leaving.in_device}: see ip rule and ip route get "
            f"{address_text(leaving.sample)}",
        )


def _has_no_pods(part: RouteFacts, link: Link) -> bool:
    """Return whether a bridge has no port: no pod runs on this node but those on its network."""
    ports = (other for other in part.devices.links.values() if other.master == link.index)
    return link.kind == "bridge" and not any(ports)


def _who(each: PathRoutes, client: Address | None) -> str:
    if client is not None:
        return address_text(client)
    return "pods on this node" if each.path.origin is Origin.POD else "other hosts"


def _as_known(each: PathRoutes, client: Address | None, finding: Finding) -> Finding:
    """Return a finding about a sample as a doubt, because other hosts may have other routes."""
    if client is None and each.path.origin is Origin.EXTERNAL and finding.result is Result.FAILED:
        return doubt(each.path, finding.message)
    return finding
