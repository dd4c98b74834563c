"""Select the endpoints of a Service on this node, and the use of each frontend.

Pure, and run for every Service in the first sync. `route_plain` routes most Services in one pass
over their endpoints, with the same result as the general code.

Facts: kube-proxy of Kubernetes v1.36. Packets are routed as kube-proxy routes them. Where its
result depends on a random order, the choice here is:

- An address and port in several slices counts once. kube-proxy takes the first copy in random
  order, unless a later copy is on this node. Here the most usable copy counts: ready before serving
  and terminating, then the one on this node. So an endpoint stays while it moves between slices.
- An address of a Service with several scopes has one frontend: as cluster IP, else as load balancer
  address, else as external IP. So source ranges also apply to a load balancer address that is
  listed in externalIPs, as in kube-proxy.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import cast

import msgspec

from pyproxy.model.address import Address, Backend, Family, Network, Protocol, family_of
from pyproxy.model.objects import (
    Endpoint,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    TrafficPolicy,
)
from pyproxy.policy import topology
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

PortKey = tuple[Family, str, Protocol]
"""The family, name and protocol by which a slice's port matches a Service's port."""

Endpoints = Mapping[Backend, Endpoint]
"""The endpoints of one Service port in one family, without duplicates."""

_NO_ENDPOINTS: Endpoints = {}

# Global names, because an attribute lookup on an enum would dominate the cost of the first sync.
_ANYWHERE = topology.TopologyMode.ANYWHERE
_POLICY_LOCAL = TrafficPolicy.LOCAL
_CLUSTER_IP, _LOAD_BALANCER, _EXTERNAL_IP, _NODE_PORT = (
    Scope.CLUSTER_IP,
    Scope.LOAD_BALANCER,
    Scope.EXTERNAL_IP,
    Scope.NODE_PORT,
)
_CLUSTER, _LOCAL, _SPLIT = Use.CLUSTER, Use.LOCAL, Use.SPLIT
_NO_ENDPOINT = (Use.REJECT, Use.REJECT)
_ANY_ADDRESS = Address(b"")
# `cast` is a call too, and this one is in C.
_backend = cast("Callable[[Address, bytes], Backend]", operator.add)
_ADDRESS_SIZES = {family: family.bits // 8 for family in Family}


class SelectedEndpoints(msgspec.Struct, frozen=True, gc=False):
    """The endpoints that a Service port may use, unordered.

    `cluster` is for the policy Cluster, `local` for Local. `possibly_local` are the endpoints on
    this node and those without a node, usable or not. `draining` terminate and still serve while
    others are ready. `fallback` are those of `cluster` and `local` that terminate.

    Invariant: if `cluster` is empty, so is `local`, because a local endpoint is also a cluster
    endpoint and hints that would leave no endpoint are ignored.
    """

    cluster: Collection[Backend]
    local: Collection[Backend]
    possibly_local: Collection[Backend]
    draining: Collection[Backend] = ()
    fallback: Collection[Backend] = ()


def route_service(
    service: Service, slices: Collection[EndpointSlice], node: Node | None, hostname: str
) -> ServiceRouting:
    """Return the routing of a Service: one PortRouting for each port in each family.

    `slices` are those of this Service, in any order. `node` is None until the Node is known; its
    zone is then unknown too. `hostname` is the node name in EndpointSlices. It must not be empty,
    because endpoints without a node have an empty name.
    """
    if len(slices) == 1:
        (part,) = slices
        plain = route_plain(service, part, hostname)
        if plain is not None:
            return plain
    return _route_any(service, slices, node, hostname)


def route_plain(service: Service, part: EndpointSlice, hostname: str) -> ServiceRouting | None:
    """Return the routing of a Service with one slice, one port and cluster IPs of one family.

    Return None for all other Services, and if an endpoint is not ready, has hints, or comes twice.
    """
    family = part.family
    if (
        service.load_balancer_ips
        or service.external_ips
        or len(service.ports) != 1
        or len(part.ports) != 1
        or service.families != (family,)
        or service.internal_policy is _POLICY_LOCAL
    ):
        return None
    (port,), (named,) = service.ports, part.ports
    if port.node_port or port.name != named.name or port.protocol is not named.protocol:
        return None
    number = named.port.to_bytes(2, "big")
    found: list[Backend] = []
    possibly_local: list[Backend] = []
    for endpoint in part.endpoints:
        if not endpoint.ready or endpoint.hint_zones or endpoint.hint_nodes:
            return None
        backend = _backend(endpoint.address, number)
        found.append(backend)
        if endpoint.node == hostname or not endpoint.node:
            possibly_local.append(backend)
    if len(found) > 1:
        if len(set(found)) < len(found):
            return None
        found.sort()
        possibly_local.sort()
    elif not found:
        return None
    size = _ADDRESS_SIZES[family]
    frontends: tuple[Frontend, ...] = ()
    for address in service.cluster_ips:  # most have one, and a comprehension is a call
        if len(address) == size:
            frontends += (Frontend(_CLUSTER_IP, address, port.port, _CLUSTER),)
    backends = tuple(found)
    hairpin = tuple(possibly_local) if possibly_local else ()
    return ServiceRouting(
        service.name,
        (PortRouting(port.name, family, port.protocol, frontends, backends, (), hairpin),),
        (),
        service.affinity_timeout,
        service.scheduler,
        0,
        service.health_check_port,
    )


def _route_any(
    service: Service, slices: Iterable[EndpointSlice], node: Node | None, hostname: str
) -> ServiceRouting:
    by_port = merge_slices(slices, hostname)
    zone = node.zone if node is not None else ""
    ports = []
    for family in service.families or tuple(dict.fromkeys(map(family_of, service.cluster_ips))):
        scopes = _scopes(service, family)
        for port in service.ports:
            endpoints = by_port.get((family, port.name, port.protocol), _NO_ENDPOINTS)
            usable = select_endpoints(endpoints, hostname, zone)
            ports.append(_port_routing(service, port, family, scopes, usable))
    return ServiceRouting(
        service.name,
        tuple(ports),
        _source_ranges(service, node) if service.source_ranges else (),
        service.affinity_timeout,
        service.scheduler,
        health_check_port=service.health_check_port,
    )


def _source_ranges(service: Service, node: Node | None) -> tuple[Network, ...]:
    """Return the source ranges of a Service's load balancer addresses.

    Some load balancers also put their address on the node. Then packets of the node to that
    address have it as their source too. So ranges that contain an address of the node are extended
    by the Service's load balancer addresses of that family.
    """
    if not service.load_balancer_ips:
        return ()
    own = node.addresses if node is not None else ()
    node_families = {
        family_of(address)
        for address in own
        if any(address in network for network in service.source_ranges)
    }
    own_sources = tuple(
        Network(address, family_of(address).bits)
        for address in service.load_balancer_ips
        if family_of(address) in node_families
    )
    return service.source_ranges + own_sources


def merge_slices(
    slices: Iterable[EndpointSlice], hostname: str
) -> dict[PortKey, dict[Backend, Endpoint]]:
    """Merge the slices of a Service by port, each address and port once."""
    merged: dict[PortKey, dict[Backend, Endpoint]] = {}
    for part in slices:
        for port in part.ports:
            number = port.port.to_bytes(2, "big")
            new = cast("dict[Backend, Endpoint]", {e.address + number: e for e in part.endpoints})
            found = merged.setdefault((part.family, port.name, port.protocol), new)
            # Nearly always the first slice of its port without duplicates: nothing to compare.
            if found is new and len(new) == len(part.endpoints):
                continue
            for endpoint in part.endpoints:
                backend = Backend(endpoint.address + number)
                known = found.setdefault(backend, endpoint)
                if known is not endpoint and _rank(endpoint, hostname) > _rank(known, hostname):
                    found[backend] = endpoint
    return merged


def _rank(endpoint: Endpoint, hostname: str) -> tuple[object, ...]:
    # Every field that can change the routing is compared, so the order of slices never matters.
    return (
        endpoint.ready,
        endpoint.serving and endpoint.terminating,
        endpoint.node == hostname,
        not endpoint.node,
        endpoint.hint_nodes,
        endpoint.hint_zones,
    )


def select_endpoints(endpoints: Endpoints, hostname: str, zone: str) -> SelectedEndpoints:
    """Select the endpoints that a port may use: ready ones, within topology hints.

    If no endpoint is ready, those that are serving and terminating are used instead, decided
    separately for the cluster and for this node. Hints do not apply to the policy Local.
    """
    possibly_local = [b for b, e in endpoints.items() if e.node == hostname or not e.node]
    local: Collection[Backend] = ()
    if possibly_local:
        # An endpoint without a node never counts as local: kube-proxy compares nodeName.
        here = {b: e for b in possibly_local if (e := endpoints[b]).node}
        # KEP-1669: a node whose only pods terminate serves with them until its load balancer health
        # check has failed, even if other nodes have ready endpoints.
        local = [b for b, e in here.items() if e.ready] or [
            b for b, e in here.items() if _is_fallback(e)
        ]
    for endpoint in endpoints.values():  # nearly always completes, so the fast path returns below
        if not endpoint.ready or endpoint.hint_zones or endpoint.hint_nodes:
            break
    else:
        # The dict itself: its keys are the endpoints, and a copy would cost time for each port.
        return SelectedEndpoints(endpoints, local, possibly_local)
    ready = {b: e for b, e in endpoints.items() if e.ready}
    cluster: Collection[Backend]
    if not ready:
        cluster = [b for b, e in endpoints.items() if _is_fallback(e)]
        # Those of `local` are among them.
        return SelectedEndpoints(cluster, local, possibly_local, fallback=cluster)
    # Hints are compared for ready endpoints only, as in kube-proxy.
    mode = topology.choose_mode(ready.values(), hostname, zone).mode
    cluster = ready
    if mode is not _ANYWHERE:
        cluster = [b for b, e in ready.items() if topology.within(e, mode, hostname, zone)]
    draining = [b for b, e in endpoints.items() if b not in ready and _is_fallback(e)]
    fallback = [b for b in local if b not in ready]
    return SelectedEndpoints(cluster, local, possibly_local, draining, fallback)


def _is_fallback(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating


def _scopes(service: Service, family: Family) -> dict[Address, Scope]:
    """Return the scope of each address of a family; see the module docstring for precedence."""
    size = family.bits // 8
    # A dict keeps the first scope of an address, so the order of these lists is the precedence.
    scopes = {address: _CLUSTER_IP for address in service.cluster_ips if len(address) == size}
    if not (service.load_balancer_ips or service.external_ips):
        return scopes
    for scope, addresses in (
        (_LOAD_BALANCER, service.load_balancer_ips),
        (_EXTERNAL_IP, service.external_ips),
    ):
        for address in addresses:
            if len(address) == size:
                scopes.setdefault(address, scope)
    return scopes


def _port_routing(
    service: Service,
    port: ServicePort,
    family: Family,
    scopes: Mapping[Address, Scope],
    usable: SelectedEndpoints,
) -> PortRouting:
    """Return the use of each frontend, with the endpoints that these uses need."""
    internal, external = _uses(service, usable)
    frontends = [
        Frontend(scope, address, port.port, internal if scope is _CLUSTER_IP else external)
        for address, scope in scopes.items()
    ]
    if port.node_port:
        # Last, which `expand_node_ports` relies on.
        frontends.append(Frontend(_NODE_PORT, _ANY_ADDRESS, port.node_port, external))
    # A list, not a set, because Enum.__hash__ is slow Python code.
    uses = [frontend.use for frontend in frontends]
    split = _SPLIT in uses
    cluster = _sorted(usable.cluster) if split or _CLUSTER in uses else ()
    local = _sorted(usable.local) if split or _LOCAL in uses else ()
    hairpin: Collection[Backend] = ()
    if split:
        hairpin = {*cluster, *local}
    elif usable.possibly_local:
        hairpin = {*cluster, *local}.intersection(usable.possibly_local)
    return PortRouting(
        port.name,
        family,
        port.protocol,
        tuple(frontends),
        cluster,
        local,
        _sorted(hairpin) if hairpin else (),
        _sorted(usable.draining) if usable.draining else (),
        _sorted(usable.fallback) if usable.fallback else (),
    )


def _sorted(backends: Collection[Backend]) -> tuple[Backend, ...]:
    # The same endpoints give an equal routing, whatever the order of slices and events.
    return tuple(sorted(backends)) if backends else ()


def _uses(service: Service, usable: SelectedEndpoints) -> tuple[Use, Use]:
    """Return the use of the cluster IPs, and the use of all external frontends."""
    # Without any endpoint, clients get an error at once. With endpoints on other nodes only, a drop
    # lets them retry, as in kube-proxy.
    if not usable.cluster:
        return _NO_ENDPOINT
    internal = external = _CLUSTER
    if service.internal_policy is _POLICY_LOCAL:
        internal = _LOCAL if usable.local else Use.DROP
    if service.external_policy is _POLICY_LOCAL:
        external = _SPLIT
    return internal, external
