"""Services as this node serves them: addresses, policies, backends, and why others are not used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from pyproxy.errors import Problem, UsageError
from pyproxy.inspect.query import Query
from pyproxy.inspect.snapshot import AgentView, Snapshot
from pyproxy.inspect.status import InvalidObject, invalid
from pyproxy.model.address import Backend, Family, address_text, backend_text, family_of
from pyproxy.model.objects import Endpoint, EndpointSlice, Kind, ObjectName, Service, ServicePort
from pyproxy.policy.endpoints import merge_slices, select_endpoints
from pyproxy.policy.routing import Frontend, PortRouting, ServiceRouting, Use
from pyproxy.policy.topology import IgnoredHint, TopologyChoice
from pyproxy.policy.unused import UnusedReasons, unused_reasons


class FrontendView(msgspec.Struct, frozen=True):
    """An address and port that is answered on this node; `scope` says which kind it is."""

    scope: str
    address: str
    port: int
    use: str


class BackendView(msgspec.Struct, frozen=True, rename="camel"):
    """An endpoint's address and port, whether anybody is sent there, and why others are not.

    `used_by` is "everybody", "pods and the node", "everybody else" or empty.
    """

    backend: str
    node: str
    zone: str
    used_by: str
    why_not: str


class PortView(msgspec.Struct, frozen=True, rename="camel"):
    """One port of a Service in one family; `hints` says why topology hints were not followed."""

    name: str
    family: str
    protocol: str
    port: int
    node_port: int
    frontends: tuple[FrontendView, ...]
    backends: tuple[BackendView, ...]
    hints: str


class ServiceView(msgspec.Struct, frozen=True, rename="camel"):
    """A Service; `programmed` is false until the first sync that has it."""

    namespace: str
    name: str
    internal_policy: str
    external_policy: str
    affinity_seconds: int
    source_ranges: tuple[str, ...]
    health_check_port: int
    programmed: bool
    ports: tuple[PortView, ...]
    elsewhere: tuple[BackendView, ...]
    problems: tuple[InvalidObject, ...]


class Services(msgspec.Struct, frozen=True, rename="camel"):
    """Services by namespace and name; `named` says that one was asked for by its name."""

    services: tuple[ServiceView, ...]
    named: bool = False


class Which(msgspec.Struct, frozen=True):
    """Of one namespace, of one name (`NAMESPACE/NAME`), or all where both are empty."""

    name: str = ""
    namespace: str = ""


def services(snapshot: Snapshot, which: Which) -> Services:
    """Show the Services asked for. Raises UsageError where there is none of that name."""
    problems = _by_name(snapshot.problems)
    slices: Mapping[ObjectName, Sequence[EndpointSlice]]
    if which.name:
        name = object_name(which.name)
        if name not in snapshot.services:
            raise UsageError(
                f"{name}: this node serves no such Service: pyproxy explain {name} says why"
            )
        chosen, slices = [name], {name: snapshot.slices_of(name)}
    else:
        slices = _by_service(snapshot)
        chosen = sorted(
            each for each in snapshot.services if which.namespace in ("", each.namespace)
        )
    return Services(
        tuple(
            service_view(snapshot, name, slices.get(name, ()), problems.get(str(name), ()))
            for name in chosen
        ),
        named=bool(which.name),
    )


def object_name(text: str) -> ObjectName:
    """Read `NAMESPACE/NAME`; a name alone is of the namespace default. Raises UsageError."""
    namespace, slash, name = text.rpartition("/")
    if not name or "/" in namespace or (slash and not namespace):
        raise UsageError(f"{text!r} is not a Service: write NAMESPACE/NAME")
    return ObjectName(namespace or "default", name)


def service_view(
    snapshot: Snapshot,
    name: ObjectName,
    slices: Sequence[EndpointSlice],
    problems: Sequence[Problem],
) -> ServiceView:
    """Show one Service."""
    service, routing = snapshot.services[name], snapshot.routings.get(name)
    ports = tuple(_ports(snapshot, service, routing, slices))
    return ServiceView(
        namespace=name.namespace,
        name=name.name,
        internal_policy=service.internal_policy.value,
        external_policy=service.external_policy.value,
        affinity_seconds=service.affinity_timeout,
        source_ranges=tuple(map(str, service.source_ranges)),
        health_check_port=service.health_check_port,
        programmed=routing is not None,
        ports=ports,
        elsewhere=tuple(_elsewhere(service, slices)),
        problems=tuple(map(invalid, problems)),
    )


def families(service: Service) -> tuple[Family, ...]:
    """Give the families that a Service has addresses or ports in."""
    return service.families or tuple(dict.fromkeys(map(family_of, service.cluster_ips)))


def _ports(
    snapshot: Snapshot,
    service: Service,
    routing: ServiceRouting | None,
    slices: Sequence[EndpointSlice],
) -> Iterator[PortView]:
    hostname = snapshot.settings.node_name
    zone = snapshot.node.zone if snapshot.node else ""
    joined = merge_slices(slices, hostname)
    answered = {
        (port.family, port.name, port.protocol): port for port in (routing.ports if routing else ())
    }
    for family in families(service):
        for port in service.ports:
            key = (family, port.name, port.protocol)
            endpoints = joined.get(key, {})
            reasons = unused_reasons(
                endpoints, select_endpoints(endpoints, hostname, zone), hostname, zone
            )
            said = answered.get(key)
            yield PortView(
                name=port.name,
                family=family.label,
                protocol=port.protocol.name,
                port=port.port,
                node_port=port.node_port,
                frontends=tuple(_frontend(f) for f in (said.frontends if said else ())),
                backends=tuple(_backends(endpoints, said, reasons)),
                hints=_hints(reasons.choice),
            )


def _hints(choice: TopologyChoice) -> str:
    usual = (IgnoredHint.NO_HINTS, IgnoredHint.NO_READY_ENDPOINT)
    told = (each for each in choice.ignored if each not in usual)
    return "; ".join(each.value for each in told)


def _frontend(frontend: Frontend) -> FrontendView:
    address = address_text(frontend.address) if frontend.address else ""
    return FrontendView(frontend.scope.value, address, frontend.port, frontend.use.value)


def _backends(
    endpoints: Mapping[Backend, Endpoint], port: PortRouting | None, reasons: UnusedReasons
) -> Iterator[BackendView]:
    uses = {frontend.use for frontend in port.frontends} if port else set()
    for backend, endpoint in sorted(endpoints.items()):
        cluster = port is not None and backend in port.cluster
        local = port is not None and backend in port.local
        used_by, why = "", ""
        if Use.SPLIT in uses:
            used_by = {
                (True, True): "everybody",
                (True, False): "pods and the node",
                (False, True): "everybody else",
            }.get((cluster, local), "")
            why = "" if cluster and local else _why(backend, reasons, local=cluster)
        elif cluster or local:
            used_by = "everybody"
        else:
            why = _why(backend, reasons, local=bool(uses & {Use.LOCAL, Use.DROP}))
        yield BackendView(backend_text(backend), endpoint.node, endpoint.zone, used_by, why)


def _why(backend: Backend, reasons: UnusedReasons, *, local: bool) -> str:
    found = (reasons.local if local else reasons.cluster).get(backend) or reasons.cluster.get(
        backend
    )
    return found.value if found else ""


def _elsewhere(service: Service, slices: Sequence[EndpointSlice]) -> Iterator[BackendView]:
    """Give what slices have for no port of the Service: another family, or another name."""
    wanted = families(service)
    for part in slices:
        for port in part.ports:
            why = _no_use(service.ports, part.family in wanted, part.family, port.name)
            if not why:
                continue
            for endpoint in part.endpoints:
                backend = Backend(endpoint.address + port.port.to_bytes(2, "big"))
                yield BackendView(backend_text(backend), endpoint.node, endpoint.zone, "", why)


def _no_use(ports: Sequence[ServicePort], has_family: bool, family: Family, name: str) -> str:
    if not has_family:
        return f"{family.label}, and the Service has no such address"
    if all(port.name != name for port in ports):
        return f"its port is {name!r}, and no port of the Service is called so"
    return ""


def _by_service(snapshot: Snapshot) -> dict[ObjectName, list[EndpointSlice]]:
    found: dict[ObjectName, list[EndpointSlice]] = {}
    for each in snapshot.slices.values():
        found.setdefault(each.service, []).append(each)
    return found


def _by_name(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        if problem.kind == Kind.SERVICE.value:
            found.setdefault(problem.name, []).append(problem)
    return found


def _route(witness: AgentView, which: Which) -> Services:
    return services(witness.snapshot(), which)


SERVICES = Query("/services", Which, Services, _route)
