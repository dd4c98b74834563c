"""Services as this node serves them: addresses, policies, endpoints, and why some are unused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set

import msgspec

from pyproxy.errors import Problem, UsageError
from pyproxy.inspect.listing import Listing
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.inspect.status import InvalidObject, invalid_object
from pyproxy.model.address import (
    Backend,
    Family,
    Protocol,
    address_text,
    backend_text,
    family_of,
)
from pyproxy.model.objects import (
    Endpoint,
    EndpointSlice,
    Kind,
    ObjectName,
    Service,
    SlicePort,
)
from pyproxy.policy.endpoints import merge_slices, select_endpoints
from pyproxy.policy.routing import Frontend, PortRouting, ServiceRouting, Use
from pyproxy.policy.service_bounds import within_bounds
from pyproxy.policy.topology import IgnoredHint, TopologyChoice
from pyproxy.policy.unused import UnusedReasons, unused_reasons

_UNMATCHED = 1000
"""Endpoints without a port of the Service that are shown; slices may have 20,000 such ports."""


class FrontendView(msgspec.Struct, frozen=True):
    """A frontend; `scope` and `use` are the values of policy's enums of the same names."""

    scope: str
    address: str
    port: int
    use: str


class EndpointView(msgspec.Struct, frozen=True, rename="camel"):
    """An endpoint, the clients that this node sends to it, and why others are not.

    `address` includes the port. `used_by` is "all", "internal" (pods and the node), "external" (all
    other clients) or empty.
    """

    address: str
    node: str
    zone: str
    used_by: str
    reason: str


class PortView(msgspec.Struct, frozen=True, rename="camel"):
    """One port of a Service in one family; `hints` says why topology hints are ignored."""

    name: str
    family: str
    protocol: str
    port: int
    node_port: int
    frontends: tuple[FrontendView, ...]
    endpoints: tuple[EndpointView, ...]
    hints: str


class ServiceView(msgspec.Struct, frozen=True, rename="camel"):
    """A Service on this node.

    `programmed` is false until a sync has included it. `unmatched` are endpoints of its slices that
    belong to no port of the Service.
    """

    namespace: str
    name: str
    internal_policy: str
    external_policy: str
    affinity_seconds: int
    source_ranges: tuple[str, ...]
    health_check_port: int
    programmed: bool
    ports: tuple[PortView, ...]
    unmatched: tuple[EndpointView, ...]
    invalid: tuple[InvalidObject, ...]


class Services(msgspec.Struct, frozen=True, rename="camel"):
    """Services sorted by namespace and name; `named` is true if the query named one of them."""

    services: tuple[ServiceView, ...]
    named: bool = False


def services(snapshot: Snapshot, name: str = "", namespace: str = "") -> Services:
    """Return one Service (NAMESPACE/NAME), those of a namespace, or all.

    Raises UsageError if the node has no Service of that name.
    """
    return list_services(snapshot, name, namespace).whole()


def list_services(snapshot: Snapshot, name: str = "", namespace: str = "") -> Listing[Services]:
    """Return the same Service by Service, and port by port. Raises UsageError."""
    problems = _problems_by_service(snapshot.problems)
    slices: Mapping[ObjectName, Sequence[EndpointSlice]]
    if name:
        wanted = object_name(name)
        if wanted not in snapshot.services:
            raise UsageError(f"this node does not serve {wanted}: run pyproxy explain {wanted}")
        chosen, slices = [wanted], {wanted: snapshot.slices_of(wanted)}
    else:
        # One pass over all slices; `slices_of` would make a pass for each Service.
        slices = _slices_by_service(snapshot)
        chosen = sorted(each for each in snapshot.services if namespace in ("", each.namespace))
    views = (
        list_service(snapshot, each, slices.get(each, ()), problems.get(str(each), ()))
        for each in chosen
    )
    return Listing(Services((), named=bool(name)), {"services": views})


def object_name(text: str) -> ObjectName:
    """Parse `NAMESPACE/NAME` or `NAME` (in namespace default). Raises UsageError."""
    namespace, slash, name = text.rpartition("/")
    if not name or "/" in namespace or (slash and not namespace):
        raise UsageError(f"{text!r} is not a Service name: use NAMESPACE/NAME")
    return ObjectName(namespace or "default", name)


def list_routing(routing: ServiceRouting) -> Listing[ServiceRouting]:
    """Return a routing, port by port."""
    return Listing(msgspec.structs.replace(routing, ports=()), {"ports": iter(routing.ports)})


def list_service(
    snapshot: Snapshot,
    name: ObjectName,
    slices: Sequence[EndpointSlice],
    problems: Sequence[Problem],
) -> Listing[ServiceView]:
    """Return one Service, port by port."""
    service, routing = snapshot.services[name], snapshot.routings.get(name)
    settings = snapshot.settings
    # As routed: the rest is in `invalid`, and its product of ports and endpoints may be huge.
    bounded = within_bounds(service, slices, settings.node_name, settings.bounds)
    head = ServiceView(
        namespace=name.namespace,
        name=name.name,
        internal_policy=service.internal_policy.value,
        external_policy=service.external_policy.value,
        affinity_seconds=service.affinity_timeout,
        source_ranges=tuple(map(str, service.source_ranges)),
        health_check_port=service.health_check_port,
        programmed=routing is not None,
        ports=(),
        unmatched=(),
        invalid=tuple(map(invalid_object, problems)),
    )
    return Listing(
        head,
        {
            "ports": _ports(snapshot, bounded.service, routing, bounded.slices),
            "unmatched": _unmatched(service, slices),
        },
    )


def families(service: Service) -> tuple[Family, ...]:
    """Return the address families of a Service."""
    return service.families or tuple(dict.fromkeys(map(family_of, service.cluster_ips)))


def _ports(
    snapshot: Snapshot,
    service: Service,
    routing: ServiceRouting | None,
    slices: Collection[EndpointSlice],
) -> Iterator[PortView]:
    hostname = snapshot.settings.node_name
    zone = snapshot.node.zone if snapshot.node else ""
    merged = merge_slices(slices, hostname)
    routings = {
        (port.family, port.name, port.protocol): port for port in (routing.ports if routing else ())
    }
    for family in families(service):
        for port in service.ports:
            key = (family, port.name, port.protocol)
            endpoints = merged.get(key, {})
            reasons = unused_reasons(
                endpoints, select_endpoints(endpoints, hostname, zone), hostname, zone
            )
            found = routings.get(key)
            yield PortView(
                name=port.name,
                family=family.label,
                protocol=port.protocol.name,
                port=port.port,
                node_port=port.node_port,
                frontends=tuple(_frontend(f) for f in (found.frontends if found else ())),
                endpoints=tuple(_endpoints(endpoints, found, reasons)),
                hints=_hints(reasons.choice),
            )


def _hints(choice: TopologyChoice) -> str:
    # These two hold for most Services and explain nothing.
    usual = (IgnoredHint.NO_HINTS, IgnoredHint.NO_READY_ENDPOINT)
    return "; ".join(each.value for each in choice.ignored if each not in usual)


def _frontend(frontend: Frontend) -> FrontendView:
    address = address_text(frontend.address) if frontend.address else ""
    return FrontendView(frontend.scope.value, address, frontend.port, frontend.use.value)


def _endpoints(
    endpoints: Mapping[Backend, Endpoint], port: PortRouting | None, reasons: UnusedReasons
) -> Iterator[EndpointView]:
    # From the routing: a Service that waits for a sync shows its programmed state.
    uses = {frontend.use for frontend in port.frontends} if port else set()
    # Sets, because a look-up in a tuple would take time in proportion to the endpoints.
    clusters = frozenset(port.cluster if port else ())
    locals_ = frozenset(port.local if port else ())
    for backend, endpoint in sorted(endpoints.items()):
        cluster, local = backend in clusters, backend in locals_
        used_by, reason = "", ""
        # With externalTrafficPolicy Local, internal clients use `cluster`, all others `local`.
        if Use.SPLIT in uses:
            used_by = {
                (True, True): "all",
                (True, False): "internal",
                (False, True): "external",
            }.get((cluster, local), "")
            reason = "" if cluster and local else _reason(backend, reasons, local=cluster)
        elif cluster or local:
            used_by = "all"
        else:
            reason = _reason(backend, reasons, local=bool(uses & {Use.LOCAL, Use.DROP}))
        yield EndpointView(backend_text(backend), endpoint.node, endpoint.zone, used_by, reason)


def _reason(backend: Backend, reasons: UnusedReasons, *, local: bool) -> str:
    found = (reasons.local if local else reasons.cluster).get(backend) or reasons.cluster.get(
        backend
    )
    return found.value if found else ""


def _unmatched(service: Service, slices: Sequence[EndpointSlice]) -> Iterator[EndpointView]:
    # Policy joins slices to ports by family, name and protocol.
    wanted = families(service)
    names = {port.name for port in service.ports}
    keys = {(port.name, port.protocol) for port in service.ports}
    shown = 0
    for part in slices:
        for port in part.ports:
            lacks = None if part.family in wanted else part.family
            reason = _mismatch(names, keys, lacks, port)
            if not reason:
                continue
            for endpoint in part.endpoints[: _UNMATCHED - shown]:
                backend = Backend(endpoint.address + port.port.to_bytes(2, "big"))
                yield EndpointView(backend_text(backend), endpoint.node, endpoint.zone, "", reason)
                shown += 1


def _mismatch(
    names: Set[str], keys: Set[tuple[str, Protocol]], family: Family | None, port: SlicePort
) -> str:
    """Return why no Service port takes a slice's port; `family` is one that the Service lacks."""
    if family is not None:
        return f"the Service has no {family.label} address"
    if port.name not in names:
        return f"the Service has no port named {port.name!r}"
    if (port.name, port.protocol) not in keys:
        return f"the Service has no port named {port.name!r} with {port.protocol.name}"
    return ""


def _slices_by_service(snapshot: Snapshot) -> dict[ObjectName, list[EndpointSlice]]:
    found: dict[ObjectName, list[EndpointSlice]] = {}
    for each in snapshot.slices.values():
        found.setdefault(each.service, []).append(each)
    return found


def _problems_by_service(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        if problem.kind == Kind.SERVICE.value:
            found.setdefault(problem.name, []).append(problem)
    return found
