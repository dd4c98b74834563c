"""The expected verdict of a packet, from routings and the meaning of Services alone.

It uses no sets, elements or chains, so that the rows can be tested against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from pyproxy.dataplane.nftables.tracer import Trace
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    DropReason,
    Masquerade,
    Packet,
    Rejected,
    RejectWith,
    Untouched,
    Verdict,
)
from pyproxy.model.address import Backend, Protocol, family_of
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.dataplane.nftables.scenes import LOCAL, Scene

Found = tuple[ServiceRouting, PortRouting, Frontend]


def wanted(packet: Packet, scene: Scene, routings: Iterable[ServiceRouting]) -> frozenset[Verdict]:
    """Every verdict that this packet may meet, when nothing is remembered of its sender."""
    routings = tuple(routings)
    if not packet.new:
        return frozenset([Untouched()])
    found = frontend_of(packet, routings)
    if found is None:
        beside = packet.destination in cluster_ips(routings)
        return frozenset([_no(packet) if beside else Untouched()])
    routing, _, frontend = found
    if (
        frontend.scope is Scope.LOAD_BALANCER
        and routing.source_ranges
        and not any(packet.source in network for network in routing.source_ranges)
    ):
        return frozenset([Dropped(DropReason.SOURCE_RANGES)])
    if frontend.use is Use.REJECT:
        return frozenset([_no(packet)])
    backends, masquerade = allowed(packet, scene, found)
    if not backends:
        return frozenset([Dropped(DropReason.POLICY)])
    hairpins = {backend[:-2] for each in routings for p in each.ports for backend in p.hairpin}
    return frozenset(
        Delivered(backend, _source(packet, backend, hairpins, masquerade=masquerade))
        for backend in backends
    )


def allowed(packet: Packet, scene: Scene, found: Found) -> tuple[tuple[Backend, ...], bool]:
    """Which backends serve this client, and whether its address is hidden from all of them."""
    _, port, frontend = found
    pod = is_pod(packet, scene)
    own = packet.source in LOCAL
    masquerade = False
    if frontend.scope is Scope.CLUSTER_IP:
        masquerade = scene.masquerade_all or pod is False
    match frontend.use:
        case Use.CLUSTER:
            return port.cluster, masquerade or frontend.scope is not Scope.CLUSTER_IP
        case Use.LOCAL:
            return port.local, masquerade
        case Use.SPLIT if pod:
            return port.cluster, False
        case Use.SPLIT if own:
            return port.cluster, True
        case Use.SPLIT:
            return port.local, False
        case _:
            return (), False


def fair(trace: Trace) -> bool:
    """Whether the endpoints share as promised: all alike, but for less than 1 in 256."""
    shares = list(trace.verdicts().values())
    even = Fraction(1, len(shares))
    most = even + Fraction(1, 256) * 2 / len(shares)
    return sum(shares) == 1 and all(even * 255 / 256 <= share <= most for share in shares)


def frontend_of(packet: Packet, routings: Iterable[ServiceRouting]) -> Found | None:
    for routing in routings:
        for port in routing.ports:
            for frontend in port.frontends:
                there = (frontend.address, port.protocol, frontend.port)
                if there == (packet.destination, packet.protocol, packet.port):
                    return routing, port, frontend
    return None


def cluster_ips(routings: Iterable[ServiceRouting]) -> set[bytes]:
    return {
        frontend.address
        for routing in routings
        for port in routing.ports
        for frontend in port.frontends
        if frontend.scope is Scope.CLUSTER_IP
    }


def is_pod(packet: Packet, scene: Scene) -> bool | None:
    """None where no option tells pods of this family."""
    if scene.pod_interface == "cbr0":
        return packet.interface == "cbr0"
    if scene.pod_interface == "veth*":
        return packet.interface.startswith("veth")
    networks = [n for n in scene.node.pod_networks if n.family is family_of(packet.source)]
    return any(packet.source in network for network in networks) if networks else None


def _no(packet: Packet) -> Rejected:
    return Rejected(RejectWith.TCP_RESET if packet.protocol is Protocol.TCP else RejectWith.ICMP)


def _source(
    packet: Packet, backend: Backend, hairpins: set[bytes], *, masquerade: bool
) -> Masquerade:
    if packet.interface and backend[:-2] in LOCAL:
        return Masquerade.NONE  # delivered on this node: no reply has to come back through it
    if masquerade:
        return Masquerade.MARK
    if packet.source == backend[:-2] and packet.source in hairpins:
        return Masquerade.HAIRPIN
    return Masquerade.NONE
