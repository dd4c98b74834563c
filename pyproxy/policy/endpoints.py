"""Which backends a Service has on this node, and whom each of its frontends sends to them.

Pure, and run for every Service at the first sync, so the common case (all endpoints ready, no
hints, policies Cluster) walks each endpoint a few times and builds one value per frontend.

Facts: kube-proxy of Kubernetes v1.36. It is followed in all that a packet can show, with these
choices where it leaves one:

- An address and port that slices give twice counts once. kube-proxy takes whichever copy it meets
  first unless a later one is on this node, and the order of slices is random there. Here the most
  usable copy counts (ready, then serving and terminating), and between equals the one on this
  node: an endpoint that is being moved from one slice to another does not flicker.
- An address that a Service has in several ways has one frontend: as cluster IP, else as load
  balancer address, else as external IP. Source ranges thus guard a load balancer address that is
  listed in externalIPs as well, as they do in kube-proxy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
"""What joins a slice's port to a Service's: its family, its name and its protocol."""

Endpoints = Mapping[Backend, Endpoint]
"""The endpoints of one Service port in one family, without repetition."""

_NO_ENDPOINTS: Endpoints = {}

# A member that is looked up in its enum takes as long as all else that is done with it here.
_ANYWHERE = topology.TopologyMode.ANYWHERE
_POLICY_LOCAL = TrafficPolicy.LOCAL
_CLUSTER_IP, _LOAD_BALANCER, _EXTERNAL_IP, _NODE_PORT = (
    Scope.CLUSTER_IP,
    Scope.LOAD_BALANCER,
    Scope.EXTERNAL_IP,
    Scope.NODE_PORT,
)
_CLUSTER, _LOCAL, _SPLIT = Use.CLUSTER, Use.LOCAL, Use.SPLIT
_NOBODY = (Use.REJECT, Use.REJECT)
_ANY_ADDRESS = Address(b"")


class SelectedEndpoints(msgspec.Struct, frozen=True, gc=False):
    """The backends that a Service port may use, in no order.

    `cluster` is for the policy Cluster, `local` for Local, and `near` are all that this node may
    have, usable or not: those that are on it, and those that do not say where they are. While
    `cluster` is empty `local` is too: an endpoint that may serve one of them may serve the other,
    and hints are never followed to nowhere. `draining` are those that terminate and still serve
    while there are ready ones.
    """

    cluster: Collection[Backend]
    local: Collection[Backend]
    near: Collection[Backend]
    draining: Collection[Backend] = ()


def route_service(
    service: Service, slices: Iterable[EndpointSlice], node: Node | None, hostname: str
) -> ServiceRouting:
    """Work out a whole Service: one PortRouting for each of its ports in each of its families.

    `slices` are those of this Service, in any order. `node` is None as long as it is not known,
    which leaves its zone open. `hostname` is the name that endpoints on this node carry, and never
    empty, which is how an endpoint without a node reads.
    """
    joined = merge_slices(slices, hostname)
    zone = node.zone if node is not None else ""
    ports = []
    for family in service.families or tuple(dict.fromkeys(map(family_of, service.cluster_ips))):
        scopes = _scopes(service, family)
        for port in service.ports:
            endpoints = joined.get((family, port.name, port.protocol), _NO_ENDPOINTS)
            usable = select_endpoints(endpoints, hostname, zone)
            ports.append(_port_answer(service, port, family, scopes, usable))
    return ServiceRouting(
        service.name,
        tuple(ports),
        _source_ranges(service, node) if service.source_ranges else (),
        service.affinity_timeout,
        service.scheduler,
    )


def _source_ranges(service: Service, node: Node | None) -> tuple[Network, ...]:
    """Give whom the load balancer's addresses let in.

    Where such an address is the node's own too, as some load balancers have it, what the node
    sends there comes from that very address. So ranges that hold an address of the node hold the
    Service's load balancer addresses of that family as well.
    """
    if not service.load_balancer_ips:
        return ()
    own = node.addresses if node is not None else ()
    node_let_in = {
        family_of(address)
        for address in own
        if any(address in network for network in service.source_ranges)
    }
    looped = tuple(
        Network(address, family_of(address).bits)
        for address in service.load_balancer_ips
        if family_of(address) in node_let_in
    )
    return service.source_ranges + looped


def merge_slices(
    slices: Iterable[EndpointSlice], hostname: str
) -> dict[PortKey, dict[Backend, Endpoint]]:
    """Gather a Service's slices by port; one backend may be in several slices and counts once."""
    joined: dict[PortKey, dict[Backend, Endpoint]] = {}
    for part in slices:
        for port in part.ports:
            number = port.port.to_bytes(2, "big")
            new = cast("dict[Backend, Endpoint]", {e.address + number: e for e in part.endpoints})
            found = joined.setdefault((part.family, port.name, port.protocol), new)
            if found is new and len(new) == len(part.endpoints):
                continue
            for endpoint in part.endpoints:
                backend = Backend(endpoint.address + number)
                known = found.setdefault(backend, endpoint)
                if known is not endpoint and _rank(endpoint, hostname) > _rank(known, hostname):
                    found[backend] = endpoint
    return joined


def _rank(endpoint: Endpoint, hostname: str) -> tuple[object, ...]:
    # All that can change an answer takes part, so that the order of slices never does.
    return (
        endpoint.ready,
        endpoint.serving and endpoint.terminating,
        endpoint.node == hostname,
        endpoint.hint_nodes,
        endpoint.hint_zones,
    )


def select_endpoints(endpoints: Endpoints, hostname: str, zone: str) -> SelectedEndpoints:
    """Choose the endpoints that a port may use: ready and near ones.

    Without any ready endpoint those that are terminating and still serve stand in, for all of the
    cluster and for this node separately. Hints say nothing about this node's own endpoints.
    """
    near = [b for b, e in endpoints.items() if e.node == hostname or not e.node]
    local: Collection[Backend] = ()
    if near:
        here = {b: e for b in near if (e := endpoints[b]).node}
        local = [b for b, e in here.items() if e.ready] or [
            b for b, e in here.items() if _stands_in(e)
        ]
    for endpoint in endpoints.values():  # nearly always to its end
        if not endpoint.ready or endpoint.hint_zones or endpoint.hint_nodes:
            break
    else:
        return SelectedEndpoints(endpoints, local, near)
    ready = {b: e for b, e in endpoints.items() if e.ready}
    if not ready:
        return SelectedEndpoints([b for b, e in endpoints.items() if _stands_in(e)], local, near)
    mode = topology.choose_mode(ready.values(), hostname, zone).mode
    cluster: Collection[Backend] = ready
    if mode is not _ANYWHERE:
        cluster = [b for b, e in ready.items() if topology.within(e, mode, hostname, zone)]
    draining = [b for b, e in endpoints.items() if b not in ready and _stands_in(e)]
    return SelectedEndpoints(cluster, local, near, draining)


def _stands_in(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating


def _scopes(service: Service, family: Family) -> dict[Address, Scope]:
    """Say what each address of a family is; see the head of this module for the precedence."""
    size = family.bits // 8
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


def _port_answer(
    service: Service,
    port: ServicePort,
    family: Family,
    scopes: Mapping[Address, Scope],
    usable: SelectedEndpoints,
) -> PortRouting:
    """Give each frontend its use, and keep no more backends than those uses ask for."""
    internal, external = _uses(service, usable)
    frontends = [
        Frontend(scope, address, port.port, internal if scope is _CLUSTER_IP else external)
        for address, scope in scopes.items()
    ]
    if port.node_port:
        frontends.append(Frontend(_NODE_PORT, _ANY_ADDRESS, port.node_port, external))
    # A list and no set, for an enum's hash is written in Python.
    uses = [frontend.use for frontend in frontends]
    split = _SPLIT in uses
    cluster = _sorted(usable.cluster) if split or _CLUSTER in uses else ()
    local = _sorted(usable.local) if split or _LOCAL in uses else ()
    hairpin: Collection[Backend] = ()
    if split:
        hairpin = {*cluster, *local}
    elif usable.near:
        hairpin = {*cluster, *local}.intersection(usable.near)
    return PortRouting(
        port.name,
        family,
        port.protocol,
        tuple(frontends),
        cluster,
        local,
        _sorted(hairpin) if hairpin else (),
        _sorted(usable.draining) if usable.draining else (),
    )


def _sorted(backends: Collection[Backend]) -> tuple[Backend, ...]:
    return tuple(sorted(backends)) if backends else ()


def _uses(service: Service, usable: SelectedEndpoints) -> tuple[Use, Use]:
    """Decide the use of cluster IPs, and that of all external frontends."""
    if not usable.cluster:
        return _NOBODY
    internal = external = _CLUSTER
    if service.internal_policy is _POLICY_LOCAL:
        internal = _LOCAL if usable.local else Use.DROP
    if service.external_policy is _POLICY_LOCAL:
        external = _SPLIT
    return internal, external
