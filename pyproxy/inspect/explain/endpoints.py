"""Steps from the Service to the endpoints that this node uses."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.inspect.explain.step import Result, Step
from pyproxy.inspect.facts import Facts, PortFacts, frontend_text
from pyproxy.inspect.humanize import count, listed
from pyproxy.model.address import backend_text
from pyproxy.model.objects import TrafficPolicy
from pyproxy.policy.endpoints import select_endpoints
from pyproxy.policy.routing import PortRouting, Use
from pyproxy.policy.unused import UnusedReason, unused_reasons


def slices(facts: Facts) -> Step:
    """Check that slices have endpoints of a family that the Service has."""
    name, parts = "slices", facts.agent.slices
    if not parts:
        return Step(
            name,
            Result.FAILED,
            "the Service has no EndpointSlice",
            "check that its selector matches pods, and that kube-controller-manager runs",
        )
    found = sum(len(part.endpoints) for part in parts)
    if not found:
        return Step(
            name,
            Result.FAILED,
            f"no endpoint in {count(len(parts), 'slice')}",
            "check that its selector matches pods, and that they have an address",
        )
    # The EndpointSlice controller writes slices for the families of spec.ipFamilies only.
    have = {part.family for part in parts if part.endpoints}
    missing = [family.label for family in facts.families if family not in have]
    if len(missing) == len(facts.families):
        others = " and ".join(sorted(family.label for family in have))
        return Step(
            name,
            Result.FAILED,
            f"the address is {' and '.join(missing)}, but all endpoints are {others}",
            f"set spec.ipFamilies to {others}, or give the pods {' and '.join(missing)} addresses",
        )
    message = f"{count(len(parts), 'slice')} with {count(found, 'endpoint')}"
    if missing:
        others = " and ".join(sorted(family.label for family in have))
        absent = " and ".join(missing)
        rejected = f"connections to the Service's {absent} addresses are rejected"
        return Step(
            name,
            Result.FAILED,
            f"{message}, none of them {' or '.join(missing)}: {rejected}",
            f"give the pods {absent} addresses, or set spec.ipFamilies to {others}",
        )
    return Step(name, Result.OK, message)


def ports(facts: Facts) -> Step:
    """Check that slices have every port of the Service."""
    name, parts = "ports", [part for part in facts.agent.slices if part.endpoints]
    if not parts:
        return Step(name, Result.SKIPPED, "no endpoints")
    targets: list[str] = []
    for port in facts.ports():
        if not any(part.family is port.family for part in parts):
            continue
        # A slice without this port: the EndpointSlice controller omits a named targetPort that no
        # pod declares.
        if not port.endpoints:
            return _port_missing(facts, port)
        numbers = sorted({int.from_bytes(backend[-2:], "big") for backend in port.endpoints})
        targets.append(f"{port} leads to {listed(list(map(str, numbers)))}")
    return Step(name, Result.OK, listed(list(dict.fromkeys(targets))) or "none of this family")


def _port_missing(facts: Facts, port: PortFacts) -> Step:
    target = _target_port(facts, port)
    others = sorted(
        {
            f"{each.name or '(no name)'} {each.port}/{each.protocol.name}"
            for part in facts.agent.slices
            for each in part.ports
        }
    )
    found = f"they have {listed(others)}" if others else "they have no port"
    if isinstance(target, str):
        message = f"port {port}: no slice has its targetPort {target!r}: {found}"
        fix = f"name a container port {target!r} in the pods, or set targetPort to a number"
    else:
        message = f"port {port}: no slice has it: {found}"
        fix = "use the same port names and protocols in spec.ports and in the slices"
    return Step("ports", Result.FAILED, message, fix)


def _target_port(facts: Facts, port: PortFacts) -> int | str:
    service = facts.api.service
    for each in (service.spec.ports if service else None) or ():
        if (each.name or "", each.port) == (port.port.name, port.port.port):
            return each.target
    return 0


def readiness(facts: Facts) -> Step:
    """Check that an endpoint is ready, or serves while it terminates."""
    name = "readiness"
    endpoints = {b: e for port in facts.ports() for b, e in port.endpoints.items()}
    if not endpoints:
        return Step(name, Result.SKIPPED, "no endpoints")
    ready = [e for e in endpoints.values() if e.ready]
    unready = [backend_text(b) for b, e in sorted(endpoints.items()) if not e.ready]
    if ready:
        verb = "is" if len(ready) == 1 else "are"
        message = f"{len(ready)} of {count(len(endpoints), 'endpoint')} {verb} ready"
        others = f"; not ready: {listed(unready)}" if unready else ""
        return Step(name, Result.NOTE if unready else Result.OK, message + others)
    # kube-proxy too falls back to terminating endpoints that serve (KEP-1669).
    if any(e.serving and e.terminating for e in endpoints.values()):
        return Step(
            name, Result.NOTE, "no endpoint is ready; terminating endpoints that serve are used"
        )
    if all(e.terminating for e in endpoints.values()):
        return Step(
            name,
            Result.FAILED,
            f"all endpoints ({len(endpoints)}) are terminating and do not serve",
            f"check why no new pod runs: kubectl get pods -n {facts.name.namespace}",
        )
    return Step(
        name,
        Result.FAILED,
        f"no endpoint is ready: {listed(unready)}",
        f"check the readiness probes: kubectl describe pods -n {facts.name.namespace}",
        tuple(_unready_pods(facts)),
    )


def _unready_pods(facts: Facts) -> Iterator[str]:
    for pod in facts.api.pods:
        for condition in pod.status.conditions or ():
            if condition.type == "Ready" and condition.status != "True" and condition.message:
                yield f"pod {pod.metadata.name}: {condition.message}"


def policy(facts: Facts) -> Step:
    """Check that traffic policies and topology hints leave an endpoint to use."""
    name, used, unused = "policy", set[str](), list[str]()
    for port in facts.ports():
        if port.routing is None:
            continue
        if step := _rejected(facts, port, port.routing):
            return step
        if step := _without_local(facts, port, port.routing):
            return step
        used |= {backend_text(b) for b in (*port.routing.cluster, *port.routing.local)}
        unused += _unused(facts, port, port.routing)
    if not used:
        return Step(name, Result.SKIPPED, "not programmed")
    message = f"this node sends to {count(len(used), 'endpoint')}: {listed(sorted(used))}"
    if unused:
        return Step(name, Result.NOTE, f"{message}; not used: {listed(sorted(set(unused)))}")
    return Step(name, Result.OK, message)


def _rejected(facts: Facts, port: PortFacts, routing: PortRouting) -> Step | None:
    # REJECT means that no endpoint of the cluster is usable.
    frontends = [f for f in routing.frontends if f.use is Use.REJECT]
    if not frontends:
        return None
    family = f" {port.family.label}" if len(facts.families) > 1 else ""
    found = "is usable" if port.endpoints else "exists"
    addresses = listed([frontend_text(f, port.port.protocol) for f in frontends])
    return Step(
        "policy",
        Result.FAILED,
        f"no{family} endpoint of {port} {found}: connections to {addresses} are rejected",
        f"see the steps before, and kubectl get endpointslices -n {facts.name.namespace} -l "
        f"kubernetes.io/service-name={facts.name.name}",
    )


def _without_local(facts: Facts, port: PortFacts, routing: PortRouting) -> Step | None:
    # kube-proxy drops these packets too; with no endpoint in the cluster it rejects them.
    missing = f"no endpoint of {port} is on this node ({facts.hostname})"
    if any(f.use is Use.DROP for f in routing.frontends):
        return Step(
            "policy",
            Result.FAILED,
            f"internalTrafficPolicy is Local, but {missing}: connections are dropped",
            "run a pod of the Service on this node, or set internalTrafficPolicy to Cluster",
        )
    if any(f.use is Use.SPLIT for f in routing.frontends) and not routing.local:
        return Step(
            "policy",
            Result.FAILED,
            f"externalTrafficPolicy is Local, but {missing}: external connections are dropped",
            "connect to a node with an endpoint, which is what load balancer health checks are "
            "for, or run a pod here, or set externalTrafficPolicy to Cluster",
        )
    return None


def _unused(facts: Facts, port: PortFacts, routing: PortRouting) -> Iterator[str]:
    zone = facts.agent.node.zone if facts.agent.node else ""
    usable = select_endpoints(port.endpoints, facts.hostname, zone)
    reasons = unused_reasons(port.endpoints, usable, facts.hostname, zone)
    local = facts.service.internal_policy is TrafficPolicy.LOCAL
    used = set(routing.local)
    # The step `readiness` lists endpoints that are not ready.
    unready = (UnusedReason.NOT_READY, UnusedReason.TERMINATING)
    for backend, reason in (reasons.local if local else reasons.cluster).items():
        if reason not in unready and backend not in used:
            yield f"{backend_text(backend)} ({reason.value})"
