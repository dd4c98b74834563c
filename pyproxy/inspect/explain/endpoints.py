"""From the Service to those who may serve it: slices, ports, readiness, policy."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.inspect.explain.case import Case, Mark, Port, Step, listed, plural
from pyproxy.model.address import backend_text
from pyproxy.model.objects import TrafficPolicy
from pyproxy.policy.endpoints import select_endpoints
from pyproxy.policy.routing import PortRouting, Scope, Use
from pyproxy.policy.unused import UnusedReason, unused_reasons


def slices(case: Case) -> Step:
    """Are there slices with endpoints, in a family that the Service has."""
    name, parts = "slices", case.evidence.slices
    if not parts:
        return Step(
            name,
            Mark.CROSS,
            "no EndpointSlice names it",
            "see that its selector matches pods, and that kube-controller-manager runs",
        )
    found = sum(len(part.endpoints) for part in parts)
    if not found:
        return Step(
            name,
            Mark.CROSS,
            f"its {plural(len(parts), 'slice')} list no endpoint",
            "see that its selector matches pods that have an address",
        )
    have = {part.family for part in parts if part.endpoints}
    missing = [family.label for family in case.families if family not in have]
    if len(missing) == len(case.families):
        others = " and ".join(sorted(family.label for family in have))
        return Step(
            name,
            Mark.CROSS,
            f"its address is {' and '.join(missing)}, and all its endpoints are {others}",
            f"make the Service one of {others} (spec.ipFamilies), or give its pods such addresses",
        )
    says = f"{plural(len(parts), 'slice')} with {plural(found, 'endpoint')}"
    if missing:
        return Step(name, Mark.NOTE, f"{says}, none of them {' or '.join(missing)}")
    return Step(name, Mark.TICK, says)


def ports(case: Case) -> Step:
    """Does each port lead to one that slices have."""
    name, parts = "ports", [part for part in case.evidence.slices if part.endpoints]
    if not parts:
        return Step(name, Mark.SKIPPED, "there is no endpoint whose ports could be looked at")
    ways: list[str] = []
    for port in case.ports():
        if not any(part.family is port.family for part in parts):
            continue
        if not port.endpoints:
            return _no_port(case, port)
        numbers = sorted({int.from_bytes(backend[-2:], "big") for backend in port.endpoints})
        ways.append(f"{port} leads to {listed(list(map(str, numbers)))}")
    return Step(name, Mark.TICK, listed(list(dict.fromkeys(ways))) or "none of this family")


def _no_port(case: Case, port: Port) -> Step:
    target = _target(case, port)
    others = sorted(
        {
            f"{each.name or '(no name)'} {each.port}/{each.protocol.name}"
            for part in case.evidence.slices
            for each in part.ports
        }
    )
    have = f"they have {listed(others)}" if others else "they have no port at all"
    if isinstance(target, str):
        says = f"port {port} leads to targetPort {target!r}, which no slice has: {have}"
        fix = f"name a container's port {target!r} in its pods, or make targetPort the number"
    else:
        says = f"port {port} is in none of its slices: {have}"
        fix = "have the slices' port name and protocol match those in spec.ports"
    return Step("ports", Mark.CROSS, says, fix)


def _target(case: Case, port: Port) -> int | str:
    service = case.lookup.service
    for each in (service.spec.ports if service else None) or ():
        if (each.name or "", each.port) == (port.port.name, port.port.port):
            return each.target
    return 0


def readiness(case: Case) -> Step:
    """Is anybody ready, or at least serving while it terminates."""
    name = "readiness"
    endpoints = {b: e for port in case.ports() for b, e in port.endpoints.items()}
    if not endpoints:
        return Step(name, Mark.SKIPPED, "there is no endpoint for it")
    ready = [e for e in endpoints.values() if e.ready]
    unready = [backend_text(b) for b, e in sorted(endpoints.items()) if not e.ready]
    if ready:
        says = f"{len(ready)} of {plural(len(endpoints), 'endpoint')} ready"
        others = f"; not {listed(unready)}" if unready else ""
        return Step(name, Mark.NOTE if unready else Mark.TICK, says + others)
    if any(e.serving and e.terminating for e in endpoints.values()):
        return Step(name, Mark.NOTE, "none is ready; those that terminate and still serve stand in")
    if all(e.terminating for e in endpoints.values()):
        return Step(
            name,
            Mark.CROSS,
            f"all of its {plural(len(endpoints), 'endpoint')} are terminating and serve no more",
            f"see why no new pod has come: kubectl get pods -n {case.name.namespace}",
        )
    return Step(
        name,
        Mark.CROSS,
        f"none of its {plural(len(endpoints), 'endpoint')} is ready: {listed(unready)}",
        f"see what their readiness probes say: kubectl describe pods -n {case.name.namespace}",
        tuple(_probes(case)),
    )


def _probes(case: Case) -> Iterator[str]:
    for pod in case.lookup.pods:
        for condition in pod.status.conditions or ():
            if condition.type == "Ready" and condition.status != "True" and condition.message:
                yield f"pod {pod.metadata.name}: {condition.message}"


def policy(case: Case) -> Step:
    """Whom does this node send connections to, and whom does it leave out."""
    name, used, left = "policy", set[str](), list[str]()
    for port in case.ports():
        if port.routing is None:
            continue
        if Use.REJECT in _uses(port.routing).values():
            return Step(name, Mark.SKIPPED, "nobody is left to choose from: it is refused at once")
        if step := _without_local(case, port, port.routing):
            return step
        used |= {backend_text(b) for b in (*port.routing.cluster, *port.routing.local)}
        left += _left_out(case, port, port.routing)
    if not used:
        return Step(name, Mark.SKIPPED, "nothing of it is programmed")
    says = f"this node sends to {plural(len(used), 'endpoint')}: {listed(sorted(used))}"
    if left:
        return Step(name, Mark.NOTE, f"{says}; left out: {listed(sorted(set(left)))}")
    return Step(name, Mark.TICK, says)


def _uses(routing: PortRouting) -> dict[bool, Use]:
    """Give the use of cluster IPs (True), and that of all external frontends (False)."""
    return {(f.scope is Scope.CLUSTER_IP): f.use for f in routing.frontends}


def _without_local(case: Case, port: Port, routing: PortRouting) -> Step | None:
    uses = _uses(routing)
    here = f"none of the endpoints of {port} is on this node, {case.hostname}"
    if uses.get(True) is Use.DROP:
        return Step(
            "policy",
            Mark.CROSS,
            f"internalTrafficPolicy is Local, and {here}: connections are dropped",
            "run a pod of it on this node, or set internalTrafficPolicy to Cluster",
        )
    if uses.get(False) is Use.SPLIT and not routing.local:
        return Step(
            "policy",
            Mark.CROSS,
            f"externalTrafficPolicy is Local, and {here}: connections from outside are dropped",
            "send to a node that has one, as a load balancer's health checks do, or run a pod "
            "here, or set externalTrafficPolicy to Cluster",
        )
    return None


def _left_out(case: Case, port: Port, routing: PortRouting) -> Iterator[str]:
    zone = case.evidence.node.zone if case.evidence.node else ""
    usable = select_endpoints(port.endpoints, case.hostname, zone)
    reasons = unused_reasons(port.endpoints, usable, case.hostname, zone)
    local = case.service.internal_policy is TrafficPolicy.LOCAL
    for backend, why in (reasons.local if local else reasons.cluster).items():
        if (
            why not in (UnusedReason.NOT_READY, UnusedReason.TERMINATING)
            and backend not in routing.local
        ):
            yield f"{backend_text(backend)} ({why.value})"
