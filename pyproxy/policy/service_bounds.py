"""Cut a Service and its slices to the bounds of one Service, before any other work on them.

A tenant may write a Service with 1,000 ports and 264 external IPs, or slices with 20,000 ports and
1,000 endpoints each, of which the API server stores megabytes. Their product would take minutes to
route and to program, so it must not even be built. The choice depends on the objects and the node
alone, so that a restart changes nothing.

- Frontends: cluster IPs come first, then node ports, load balancer addresses and external IPs.
  Ports and addresses are left out from the end of their list.
- Endpoints: those on this node come first, then ready ones. The rest is in the order of a digest.
  One more endpoint displaces one at most. Slices with the same address are used in the order of
  their names.
- Source ranges: the ranges beyond the bound admit no client. The load balancer addresses, which
  may be ranges too (`endpoints.route_service`), are cut in the same way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import accumulate
from math import isqrt
from zlib import crc32

import msgspec

from pyproxy.errors import Problem
from pyproxy.model.address import Address, Family, Port, Protocol, family_of
from pyproxy.model.objects import Endpoint, EndpointSlice, Kind, Service, ServicePort
from pyproxy.model.service_bounds import ServiceBounds

_PortKey = tuple[Family, str, Protocol]


class Bounded(msgspec.Struct, frozen=True, gc=False):
    """A Service with the ports, addresses, endpoints and source ranges that are used."""

    service: Service
    slices: Collection[EndpointSlice]
    problems: tuple[Problem, ...] = ()


def within_bounds(
    service: Service, slices: Collection[EndpointSlice], hostname: str, bounds: ServiceBounds
) -> Bounded:
    """Return a Service and its slices within the bounds; nearly always the same values.

    `hostname` is the node name in EndpointSlices. Takes time in proportion to the two objects, not
    to the product of their lists.
    """
    if is_far_within(service, slices, bounds):
        return Bounded(service, slices)
    problems: list[Problem] = []

    def report(field: str, message: str) -> None:
        problems.append(Problem(Kind.SERVICE.value, str(service.name), field, message))

    bounded = _cut_frontends(service, bounds.frontends, report)
    bounded = _cut_source_ranges(bounded, bounds.source_ranges, report)
    used = _cut_endpoints(bounded, slices, hostname, bounds.endpoints, report)
    return Bounded(bounded, used, tuple(problems))


def is_far_within(
    service: Service, slices: Collection[EndpointSlice], bounds: ServiceBounds
) -> bool:
    """Return whether generous upper limits are within the bounds, as for nearly all Services."""
    # Each port may have a node port in two families.
    addresses = len(service.cluster_ips) + 2
    if service.external_ips or service.load_balancer_ips:
        addresses += len(service.external_ips) + len(service.load_balancer_ips)
    frontends = len(service.ports) * addresses or 1
    endpoints = 0
    for part in slices:  # a loop, because a generator would be slower here
        endpoints += len(part.endpoints) * len(part.ports)
    if frontends > bounds.frontends or frontends * endpoints > bounds.endpoints:
        return False
    if not service.source_ranges:
        return True
    ranges = len(service.source_ranges) + len(service.load_balancer_ips)
    return frontends * ranges <= bounds.source_ranges


_Report = Callable[[str, str], None]


def _families(service: Service) -> tuple[Family, ...]:
    return service.families or tuple(dict.fromkeys(map(family_of, service.cluster_ips)))


def _cut_frontends(service: Service, bound: int, report: _Report) -> Service:
    families = len(_families(service))
    addresses = (service.cluster_ips, service.load_balancer_ips, service.external_ips)
    # As if each port had a node port.
    most = len(service.ports) * (sum(map(len, addresses)) + families)
    if most <= bound:
        return service
    left = bound
    cluster_ips = len(service.cluster_ips)
    ports = service.ports[: left // max(cluster_ips, 1)]
    left -= len(ports) * cluster_ips
    ports, left = _cut_node_ports(ports, families, left)
    load_balancer_ips = _first(service.load_balancer_ips, len(ports), left)
    left -= len(ports) * len(load_balancer_ips)
    external_ips = _first(service.external_ips, len(ports), left)
    cut = msgspec.structs.replace(
        service, ports=ports, load_balancer_ips=load_balancer_ips, external_ips=external_ips
    )
    left_out = [
        f"{before - after:,} of {before:,} {field}"
        for field, before, after in (
            ("spec.ports", len(service.ports), len(ports)),
            ("spec.ports[*].nodePort", _node_ports(service.ports), _node_ports(ports)),
            (
                "status.loadBalancer.ingress",
                len(service.load_balancer_ips),
                len(load_balancer_ips),
            ),
            ("spec.externalIPs", len(service.external_ips), len(external_ips)),
        )
        if after < before
    ]
    if not left_out:
        return service
    report(
        "spec",
        f"its addresses times its ports are more than --max-frontends-per-service={bound}: "
        f"not proxied are {', '.join(left_out)}",
    )
    return cut


def _first(addresses: tuple[Address, ...], ports: int, left: int) -> tuple[Address, ...]:
    """Return as many addresses as leave the frontends of all ports within what is left."""
    return addresses[: left // max(ports, 1)]


def _cut_node_ports(
    ports: tuple[ServicePort, ...], families: int, left: int
) -> tuple[tuple[ServicePort, ...], int]:
    """Return the ports without the node ports beyond what is left, and what is left then."""
    kept: list[ServicePort] = []
    for port in ports:
        if port.node_port:
            if left >= families:
                left -= families
            else:
                port = msgspec.structs.replace(port, node_port=Port(0))  # noqa: PLW2901
        kept.append(port)
    return tuple(kept), left


def _node_ports(ports: tuple[ServicePort, ...]) -> int:
    return sum(1 for port in ports if port.node_port)


def _cut_source_ranges(service: Service, bound: int, report: _Report) -> Service:
    if not service.source_ranges:
        return service
    service = _cut_own_ranges(service, bound, report)
    # None at all would open the Service to every client, so at least one range stays.
    frontends = len(service.ports) * len(service.load_balancer_ips)
    most = max(bound // max(frontends, 1), 1)
    ranges = service.source_ranges
    if len(ranges) <= most:
        return service
    report(
        "spec.loadBalancerSourceRanges",
        f"the ranges, counted for each load balancer address and port, are more than "
        f"--max-source-ranges-per-service={bound}: {len(ranges) - most:,} of {len(ranges):,} "
        "admit no client",
    )
    return msgspec.structs.replace(service, source_ranges=ranges[:most])


def _cut_own_ranges(service: Service, bound: int, report: _Report) -> Service:
    """Cut the load balancer addresses, each of which may be a range of all others."""
    own = service.load_balancer_ips
    most = max(isqrt(bound // max(len(service.ports), 1)), 1)
    if len(own) <= most:
        return service
    report(
        "status.loadBalancer.ingress",
        "with loadBalancerSourceRanges, its addresses times themselves times its ports are more "
        f"than --max-source-ranges-per-service={bound}: {len(own) - most:,} of {len(own):,} are "
        "not proxied",
    )
    # As an external IP, an address would be open to every client.
    left_out = frozenset(own[most:])
    return msgspec.structs.replace(
        service,
        load_balancer_ips=own[:most],
        external_ips=tuple(each for each in service.external_ips if each not in left_out),
    )


def _cut_endpoints(
    service: Service,
    slices: Collection[EndpointSlice],
    hostname: str,
    bound: int,
    report: _Report,
) -> Collection[EndpointSlice]:
    weights = _frontends_by_port(service)
    # Ports that the Service lacks would be merged too.
    parts = [_with_known_ports(part, weights) for part in slices]
    weight_of = [sum(weights[each] for each in _keys(part)) for part in parts]
    total = sum(len(part.endpoints) * weight for part, weight in zip(parts, weight_of, strict=True))
    if total <= bound:
        return parts
    costs: dict[Address, int] = {}
    ranks: dict[Address, int] = {}
    kept: list[EndpointSlice] = []
    # Events decide the order of slices, and an address in many slices must not use all of them.
    for part, weight in sorted(zip(parts, weight_of, strict=True), key=lambda each: each[0].name):
        repeated: set[int] = set()
        for number, endpoint in enumerate(part.endpoints):
            address = endpoint.address
            rank = _rank(endpoint, hostname)
            before = costs.get(address)
            if before is None:
                costs[address], ranks[address] = weight, rank
            elif before + weight > bound:
                repeated.add(number)
            else:
                costs[address], ranks[address] = before + weight, min(rank, ranks[address])
        kept.append(_without(part, repeated))
    used = set(_affordable(ranks, costs, bound))
    report(
        "spec.ports",
        "its endpoints, counted for each frontend, are more than "
        f"--max-endpoints-per-service={bound}: some get no connection from this node",
    )
    unused = costs.keys() - used
    return [
        _without(
            part,
            {number for number, each in enumerate(part.endpoints) if each.address in unused},
        )
        for part in kept
    ]


def _without(part: EndpointSlice, numbers: AbstractSet[int]) -> EndpointSlice:
    """Return a slice without the endpoints of these numbers; mostly the same slice."""
    if not numbers:
        return part
    endpoints = (each for number, each in enumerate(part.endpoints) if number not in numbers)
    return msgspec.structs.replace(part, endpoints=tuple(endpoints))


def _affordable(
    ranks: Mapping[Address, int], costs: Mapping[Address, int], bound: int
) -> Iterable[Address]:
    """Return the first endpoints whose costs are within the bound, and one at least."""
    ordered = sorted(ranks, key=ranks.__getitem__)
    within = bisect_right(list(accumulate(map(costs.__getitem__, ordered))), bound)
    return ordered[: max(within, 1)]


def _rank(endpoint: Endpoint, hostname: str) -> int:
    """Return a number that orders endpoints: here, ready, serving, digest, address.

    One number, because tuples take several times as long to compare.
    """
    # Not hash(), which differs at each start; IPv6 addresses of one digest are easily found.
    address = endpoint.address
    rank = (endpoint.node != hostname) << 2 | (not endpoint.ready) << 1 | (not endpoint.serving)
    return (rank << 32 | crc32(address)) << 128 | int.from_bytes(address, "big")


def _frontends_by_port(service: Service) -> dict[_PortKey, int]:
    """Count the frontends of each port in each family, at least one."""
    found: dict[_PortKey, int] = {}
    for family in _families(service):
        size = family.bits // 8
        addresses = sum(
            1
            for each in (service.cluster_ips, service.load_balancer_ips, service.external_ips)
            for address in each
            if len(address) == size
        )
        for port in service.ports:
            key = (family, port.name, port.protocol)
            frontends = addresses + bool(port.node_port)
            found[key] = found.get(key, 0) + max(frontends, 1)
    return found


def _keys(part: EndpointSlice) -> Iterator[_PortKey]:
    return ((part.family, port.name, port.protocol) for port in part.ports)


def _with_known_ports(part: EndpointSlice, known: Mapping[_PortKey, int]) -> EndpointSlice:
    ports = tuple(port for port in part.ports if (part.family, port.name, port.protocol) in known)
    if len(ports) == len(part.ports):
        return part
    return msgspec.structs.replace(part, ports=ports)
