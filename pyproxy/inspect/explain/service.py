"""From the question to a Service that this node serves: object, fields, address, selector."""

from __future__ import annotations

from pyproxy.errors import ProblemReason
from pyproxy.inspect.explain.case import Case, Mark, Step, listed, plural
from pyproxy.model.address import address_text
from pyproxy.source.api_objects import ApiService

_SILENT_AFTER = 120.0
"""Seconds without a word from the API server that are more than a watch's usual silence."""

_PROXY_LABEL = "service.kubernetes.io/service-proxy-name"
_HEADLESS_LABEL = "service.kubernetes.io/headless"

_FIXES = {
    ProblemReason.FRONTEND_CONFLICT: "remove the address or the port from one of the two Services",
    ProblemReason.REJECTED_BY_KERNEL: "see the agent's log for what the kernel said, and report it",
    ProblemReason.FAILED_TO_START_HEALTHCHECK: "free that port on this node",
}


def agent(case: Case) -> Step:
    """Is what this node knows fresh, and is its agent well."""
    evidence, name = case.evidence, "agent"
    if case.lookup.api_error:
        return Step(
            name,
            Mark.CROSS,
            f"the API server cannot be reached: {case.lookup.api_error}; this node serves what "
            "it knew before",
            "restore the way from this node to the API server; what follows may be out of date",
        )
    if evidence.api_age > _SILENT_AFTER:
        return Step(
            name,
            Mark.CROSS,
            f"the API server was last heard of {evidence.api_age:.0f} s ago; this node serves what "
            "it knew then",
            "restore the way from this node to the API server; what follows may be out of date",
        )
    if not evidence.healthy:
        return Step(
            name,
            Mark.CROSS,
            f"the agent is {evidence.health}",
            "see the agent's log: its last lines say why",
        )
    return Step(name, Mark.TICK, f"{evidence.health}, in {evidence.settings.mode.value} mode")


def exists(case: Case) -> Step:
    """Is there such a Service, and is it this proxy's."""
    resolved, lookup, name = case.evidence.resolved, case.lookup, "service"
    if resolved.name is None:
        return Step(
            name,
            Mark.CROSS,
            f"no Service has {resolved.destination}",
            "compare the address with kubectl get services -A -o wide",
            last=True,
        )
    if case.evidence.service is not None:
        about = (
            f"{resolved.name}: {resolved.destination} is {resolved.why}"
            if (resolved.destination and resolved.answered)
            else f"{resolved.name} exists"
        )
        return Step(name, Mark.TICK, about)
    if lookup.service is not None:
        return _not_ours(case, lookup.service)
    if lookup.service_skipped or lookup.api_error:
        return Step(
            name,
            Mark.CROSS,
            f"this node has no Service {resolved.name}: there is none, or it is headless, an "
            f"ExternalName or another proxy's (the API was not asked: "
            f"{lookup.service_skipped or 'it cannot be reached'})",
            f"look with kubectl get service -n {resolved.name.namespace} {resolved.name.name}",
            last=True,
        )
    return Step(
        name,
        Mark.CROSS,
        f"there is no Service {resolved.name}",
        f"create it, or correct the name: kubectl get services -n {resolved.name.namespace}",
        last=True,
    )


def _not_ours(case: Case, found: ApiService) -> Step:
    labels, spec = found.metadata.labels or {}, found.spec
    if _PROXY_LABEL in labels:
        says = f"it is left to another proxy by its label {_PROXY_LABEL}: {labels[_PROXY_LABEL]}"
        fix = "remove the label, or see that the proxy of that name runs on this node"
    elif spec.type == "ExternalName":
        says = (
            f"it is an ExternalName: DNS has {spec.external_name} for its name, and no packet "
            "passes a proxy"
        )
        fix = f"look up the name, and connect to {spec.external_name} itself"
    elif spec.cluster_ip == "None" or _HEADLESS_LABEL in labels:
        says = "it is headless: DNS gives its pods' own addresses, and no packet passes a proxy"
        fix = "connect to the pods that DNS names, or make a Service with a cluster IP"
    elif not spec.cluster_ip:
        says = "it has no cluster IP yet"
        fix = "wait for the API server to give it one; kubectl describe says what holds it up"
    else:
        says = "the API has it, and this node has not heard of it yet"
        fix = "ask again in a moment; if it stays so, see the agent's log"
    return Step("service", Mark.CROSS, f"{case.name}: {says}", fix, last=True)


def fields(case: Case) -> Step:
    """Is any part of the Service or its slices set aside."""
    problems = case.evidence.problems
    if not problems:
        return Step("fields", Mark.TICK, "nothing of it is set aside")
    first = problems[0]
    return Step(
        "fields",
        Mark.CROSS,
        f"{first.field}: {first.message}",
        _FIXES.get(first.reason, f"correct {first.field} of {first.kind} {first.name}"),
        tuple(str(problem) for problem in problems[1:]),
    )


def address(case: Case) -> Step:
    """Does this node answer the address that was asked about, or any."""
    resolved, routing, name = case.evidence.resolved, case.evidence.routing, "address"
    if routing is None:
        says = "the next sync is still to come" if case.evidence.waiting else "no sync has had it"
        return Step(
            name, Mark.CROSS, f"nothing of it is programmed yet: {says}", "ask again in a moment"
        )
    if not resolved.answered:
        return Step(
            name,
            Mark.CROSS,
            f"{resolved.destination} is not answered on this node: {resolved.why}",
            resolved.fix or "see the other steps",
            last=True,
        )
    frontends = [
        f"{address_text(f.address)} {f.port}/{port.protocol.name} ({f.scope.value})"
        for port in routing.ports
        for f in port.frontends
    ]
    if not frontends:
        return Step(
            name, Mark.CROSS, "no address of it is answered on this node", "see what is set aside"
        )
    return Step(name, Mark.TICK, f"answered on {listed(frontends)}")


def selector(case: Case) -> Step:
    """Which pods does it select."""
    lookup, name = case.lookup, "selector"
    if lookup.api_error or lookup.service_skipped or lookup.service is None:
        why = lookup.service_skipped or "the API was not reached"
        return Step(name, Mark.SKIPPED, f"not asked: {why}")
    wanted = lookup.service.spec.selector or {}
    if not wanted:
        if any(part.endpoints for part in case.evidence.slices):
            return Step(name, Mark.NOTE, "it has none: its slices are written by somebody else")
        return Step(
            name,
            Mark.CROSS,
            "it has no selector, and nobody has written endpoints for it",
            "give it a spec.selector that matches its pods' labels, or write an EndpointSlice",
        )
    text = ",".join(f"{key}={value}" for key, value in sorted(wanted.items()))
    if lookup.pods_skipped:
        return Step(
            name, Mark.SKIPPED, f"{text}; its pods were not asked for: {lookup.pods_skipped}"
        )
    if not lookup.pods:
        return Step(
            name,
            Mark.CROSS,
            f"its selector {text} matches no pod of namespace {case.name.namespace}",
            f"compare with kubectl get pods -n {case.name.namespace} --show-labels",
        )
    names = listed([pod.metadata.name for pod in lookup.pods])
    return Step(name, Mark.TICK, f"{text} matches {plural(len(lookup.pods), 'pod')}: {names}")
