"""The kernel's routes of the packets of a Service, and of their replies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

import msgspec

from pyproxy.hostnet.devices import PODS, Devices, read_devices
from pyproxy.hostnet.packet import FirstPacket, Origin, PacketPath, ServicePaths
from pyproxy.model.address import Address, Backend, Family, Mark, Network, parse_address
from pyproxy.netlink.routing import (
    RTN_LOCAL,
    RTN_UNICAST,
    Neighbour,
    NextHop,
    RefusingRoute,
    RouteQuery,
    RouteReply,
    Routing,
    Rule,
)

_ANY_HOST = {Family.IPV4: parse_address("198.18.0.1"), Family.IPV6: parse_address("2001:2::1")}
"""An address for benchmarks (RFC 2544, RFC 5180), in place of any host beyond the gateway."""


class OtherHop(msgspec.Struct, frozen=True):
    """A next hop of a route with several, besides the one of a lookup; with the kernel's entry."""

    hop: NextHop
    neighbour: Neighbour | None


class PathRoutes(msgspec.Struct, frozen=True):
    """The routes of one path.

    `connect` is that of this node's own packet before translation, to the frontend. `forward` is
    that of the packet to the endpoint as it is received or sent, with its mark. `plain` is the same
    without input device, source and mark. `back` is that of the endpoint's reply as it is received,
    `reverse` the one that this node would use to the client; both are None if no client is known.
    `unmarked` is `forward` without the mark, if the packet has one.
    `network` is the destination of the routing table's entry, `neighbour` the next hop; None if
    the kernel has none. `client_network` and `client_neighbour` are those of the way to the client.
    `others` are further next hops to the endpoint, by which a part of the connections go, and
    `client_others` those to the client.
    """

    path: PacketPath
    forward: RouteReply
    plain: RouteReply
    connect: RouteReply | None = None
    back: RouteReply | None = None
    reverse: RouteReply | None = None
    unmarked: RouteReply | None = None
    network: Network | None = None
    neighbour: Neighbour | None = None
    client_network: Network | None = None
    client_neighbour: Neighbour | None = None
    others: tuple[OtherHop, ...] = ()
    client_others: tuple[OtherHop, ...] = ()

    @property
    def to_client(self) -> RouteReply | None:
        """The route of replies to the client: the endpoint's, or this node's own to it."""
        return self.back if self.back is not None else self.reverse


class FurtherRoute(msgspec.Struct, frozen=True):
    """The route to an endpoint without a path, as if this node sent to it.

    `by_default` is true if only the default route leads there.
    """

    endpoint: Backend
    reply: RouteReply
    by_default: bool = False


class RouteFacts(msgspec.Struct, frozen=True):
    """The paths with their devices, and the routes of each.

    `refusing` are the routes that refuse packets and `rules` the policy rules, read only if a
    packet was refused. `pod_routes` are the networks of pods with a route of their own, read only
    if pods have none but the default route. `neighbours` counts the entries of each table that the
    kernel may delete; the others do not count for its limit.
    """

    paths: ServicePaths
    devices: Devices
    routes: tuple[PathRoutes, ...]
    refusing: tuple[RefusingRoute, ...] = ()
    rules: tuple[Rule, ...] = ()
    pod_routes: tuple[Network, ...] = ()
    further: tuple[FurtherRoute, ...] = ()
    neighbours: Mapping[Family, int] = {}


def read_routes(paths: ServicePaths) -> RouteFacts:
    """Look up the routes of paths. Blocks for a few requests each. Raises KernelError."""
    devices = read_devices()
    with closing(Routing()) as routing:
        reader = _Reader(routing, devices, paths)
        routes = tuple(reader.read(path) for path in paths.paths)
        refused = {
            each.path.leaving.family
            for each in routes
            if any(reply and reply.error for reply in (each.forward, each.connect, each.back))
        }
        refusing = [route for family in refused for route in routing.refusing_routes(family)]
        rules = [rule for family in refused for rule in routing.rules(family)]
        further = tuple(map(reader.further, paths.further))
        by_default = any(each.by_default for each in further) or any(
            each.network and not each.network.prefix for each in routes
        )
        counts = {family: routing.count_neighbours(family) for family in paths.families}
        pods = routing.pod_routes(paths.cluster_networks) if by_default else []
    found = msgspec.structs.replace(paths, paths=tuple(each.path for each in routes))
    return RouteFacts(
        found,
        devices,
        routes,
        refusing=tuple(refusing),
        rules=tuple(rules),
        pod_routes=tuple(pods),
        further=further,
        neighbours=counts,
    )


class _Reader:
    """Looks up routes, each question once."""

    def __init__(self, routing: Routing, devices: Devices, paths: ServicePaths) -> None:
        self._routing = routing
        self._devices = devices
        self._paths = paths
        self._replies: dict[tuple[RouteQuery, bool], RouteReply] = {}
        self._neighbours: dict[tuple[int, Address], Neighbour | None] = {}

    def read(self, path: PacketPath) -> PathRoutes:
        """Return the routes of a path, with the path's devices filled in."""
        sample, device = self._client(path)
        leaving = path.leaving
        source: Address | None = None
        connect = None
        if path.origin is Origin.NODE:
            connect = self._route(_query(path.arriving, None, 0))
            source = path.leaving.source or connect.source
            sample = source
        elif device and sample:
            source = sample
        # The kernel takes no received packet without a source.
        received = device if source else 0
        query = _query(leaving, source, received)
        if not self._paths.by_source:
            query = RouteQuery(leaving.destination)
        forward, match = self._route(query), self._route(query, match=True)
        unmarked = None
        if leaving.mark and self._paths.by_source:
            without = msgspec.structs.replace(leaving, mark=Mark(0))
            unmarked = self._route(_query(without, source, received))
        back = reverse = None
        if sample and forward.device and forward.kind == RTN_UNICAST:
            # The reply's source is translated in postrouting, so the route is the endpoint's own.
            back = self._route(
                RouteQuery(
                    sample,
                    leaving.destination,
                    forward.device,
                    protocol=leaving.protocol,
                    source_port=leaving.port,
                )
            )
        if sample and path.origin is not Origin.NODE:
            reverse = self._route(RouteQuery(sample))
        in_device = None if path.origin is Origin.NODE else self._devices.name(device)
        plain = self._route(RouteQuery(leaving.destination))
        out_device = None
        if forward.kind != RTN_LOCAL:
            out_device = self._devices.name(forward.device or plain.device)
        network = None
        if not match.error:
            network = _network(leaving.destination, match.prefix)
        to_client, client_network = back if back is not None else reverse, None
        client_neighbour = None
        client_others: tuple[OtherHop, ...] = ()
        if sample and to_client and path.origin is not Origin.NODE:
            entry = self._route(RouteQuery(sample), match=True)
            client_network = None if entry.error else _network(sample, entry.prefix)
            client_neighbour = self._neighbour(to_client, sample)
            client_others = self._others(entry, to_client, sample)
        back_device = None
        if reverse and (reverse.error or reverse.kind == RTN_UNICAST):
            back_device = "" if reverse.error else self._devices.name(reverse.device)
        return PathRoutes(
            msgspec.structs.replace(
                path,
                back_device=back_device,
                arriving=msgspec.structs.replace(path.arriving, sample=sample, in_device=in_device),
                leaving=msgspec.structs.replace(
                    leaving, sample=sample, in_device=in_device, out_device=out_device
                ),
            ),
            forward=forward,
            plain=plain,
            connect=connect,
            back=back,
            reverse=reverse,
            unmarked=unmarked,
            network=network,
            neighbour=self._neighbour(forward, leaving.destination),
            client_network=client_network,
            client_neighbour=client_neighbour,
            others=self._others(match, forward, leaving.destination),
            client_others=client_others,
        )

    def further(self, endpoint: Backend) -> FurtherRoute:
        """Return the route to an endpoint without a path."""
        match = self._route(RouteQuery(Address(endpoint[:-2])), match=True)
        return FurtherRoute(endpoint, match, not match.error and not match.prefix)

    def _client(self, path: PacketPath) -> tuple[Address | None, int]:
        """Return an address of the origin, and the device that its packets arrive at."""
        packet = path.leaving
        if path.origin is Origin.EXTERNAL:
            # A packet to this node arrives where its address is.
            device = self._devices.of_any(self._paths.node_addresses, packet.family)
            if packet.sample is not None:
                return packet.sample, device or self._route(RouteQuery(packet.sample)).device
            route = self._route(RouteQuery(_ANY_HOST[packet.family]))
            # Without a default route there are no hosts beyond the gateway.
            if route.error or route.kind != RTN_UNICAST:
                return None, device
            return _ANY_HOST[packet.family], route.device
        if path.origin is Origin.POD:
            for sample in self._pods(packet):
                match = self._route(RouteQuery(sample), match=True)
                if packet.sample is None and match.kind == RTN_LOCAL:
                    continue
                # A pod that only the default route leads to is not on this node.
                found = not match.error and match.prefix and match.kind == RTN_UNICAST
                # The route may be wrong, and the bridge is where the pod's packets arrive.
                bridge = self._devices.bridge_of(sample, self._paths.pod_networks)
                if bridge and not (found and self._is_cable(match.device)):
                    return sample, bridge
                if found:
                    return sample, match.device
        return packet.sample, 0

    def _is_cable(self, device: int) -> bool:
        """Return whether a device may be the end of one pod's cable, which has no address."""
        link = self._devices.links.get(device)
        return bool(link and link.kind in PODS and device not in self._devices.with_address)

    def _pods(self, packet: FirstPacket) -> Iterator[Address]:
        if packet.sample is not None:
            yield packet.sample
            return
        for network in self._paths.pod_networks:
            # A pod of a network on a bridge: the first addresses are often the gateway's.
            if network.family is packet.family and len(network.address) * 8 - network.prefix > 2:
                last = int.from_bytes(network.last, "big")
                for number in (last - 1, last - 2):
                    yield Address(number.to_bytes(len(network.address), "big"))

    def _route(self, query: RouteQuery, *, match: bool = False) -> RouteReply:
        key = (query, match)
        if key not in self._replies:
            self._replies[key] = self._routing.route(query, match=match)
        return self._replies[key]

    def _neighbour(self, route: RouteReply, destination: Address) -> Neighbour | None:
        if route.error or route.kind != RTN_UNICAST:
            return None
        return self._entry(route.device, route.gateway or destination)

    def _others(
        self, match: RouteReply, chosen: RouteReply, destination: Address
    ) -> tuple[OtherHop, ...]:
        """Return the next hops of a routing table's entry, but for the one of a lookup."""
        taken = NextHop(chosen.device, chosen.gateway)
        if taken not in match.hops:  # another table's route
            return ()
        return tuple(
            OtherHop(hop, self._entry(hop.device, hop.gateway or destination))
            for hop in match.hops
            if hop != taken
        )

    def _entry(self, device: int, address: Address) -> Neighbour | None:
        key = (device, address)
        if key not in self._neighbours:
            self._neighbours[key] = self._routing.neighbour(*key)
        return self._neighbours[key]


def _query(packet: FirstPacket, source: Address | None, device: int) -> RouteQuery:
    return RouteQuery(packet.destination, source, device, packet.mark, packet.protocol, packet.port)


def _network(address: Address, prefix: int) -> Network:
    size = len(address)
    mask = ((1 << prefix) - 1) << (size * 8 - prefix)
    first = int.from_bytes(address, "big") & mask
    return Network(Address(first.to_bytes(size, "big")), prefix)
