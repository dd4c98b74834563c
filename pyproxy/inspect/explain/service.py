"""Steps from the target to a Service that this node serves."""

from __future__ import annotations

import msgspec

from pyproxy.errors import ProblemReason
from pyproxy.inspect.explain.step import Result, Step
from pyproxy.inspect.facts import Facts, frontend_text, unserved_families
from pyproxy.inspect.humanize import count, listed
from pyproxy.source.api_objects import ApiService, ServiceLookup

_API_SILENT_AFTER = 120.0
"""Seconds without data on a watch; the API server sends a bookmark about every minute."""

_PROXY_LABEL = "service.kubernetes.io/service-proxy-name"
_HEADLESS_LABEL = "service.kubernetes.io/headless"

_FIXES = {
    ProblemReason.FRONTEND_CONFLICT: "remove the address or the port from one of the two Services",
    ProblemReason.REJECTED_BY_KERNEL: "see the agent's log for the kernel's error, and report it",
    ProblemReason.FAILED_TO_START_HEALTHCHECK: "free the port on this node",
    ProblemReason.SESSION_AFFINITY_FULL: "spread the clients over more nodes or Services",
}

_RECONNECT = (
    "restore the connection from this node to the API server; the steps below may be out of date"
)


def agent(facts: Facts) -> Step:
    """Check the agent's health, its connection to the API server, and its configuration."""
    step, problems = _works(facts), facts.agent.config_problems
    if not problems:
        return step
    return msgspec.structs.replace(
        step,
        result=Result.NOTE if step.result is Result.OK else step.result,
        message=f"{step.message}; {count(len(problems), 'configuration problem')}",
        details=tuple(map(str, problems)),
    )


def _works(facts: Facts) -> Step:
    agent, name = facts.agent, "agent"
    if facts.api.api_error:
        return Step(
            name,
            Result.FAILED,
            f"cannot reach the API server: {facts.api.api_error}; this node serves the last "
            "known state",
            _RECONNECT,
        )
    if agent.api_age > _API_SILENT_AFTER:
        return Step(
            name,
            Result.FAILED,
            f"a watch has received nothing for {agent.api_age:.0f} s; this node serves the last "
            "known state",
            _RECONNECT,
        )
    if not agent.healthy:
        return Step(
            name,
            Result.FAILED,
            f"the agent is {agent.health}",
            "see the last lines of the agent's log",
        )
    return Step(name, Result.OK, f"{agent.health}, {agent.settings.mode.value} mode")


def exists(facts: Facts) -> Step:
    """Check that the Service exists and that pyproxy proxies it."""
    target, api, name = facts.agent.target, facts.api, "service"
    if target.name is None:
        return Step(
            name,
            Result.FAILED,
            f"no Service has {target.destination}",
            "compare the address with kubectl get services -A -o wide",
            final=True,
        )
    if facts.agent.service is not None:
        if target.scope:
            found = f"{target.name}: {target.destination} is its {target.scope}"
        else:
            found = f"{target.name} exists"
        return Step(name, Result.OK, found)
    if api.service is not None:
        return _not_proxied(facts, api.service)
    if api.service_skipped or api.api_error:
        return Step(
            name,
            Result.FAILED,
            f"this node has no Service {target.name}: it does not exist, or it is headless, an "
            f"ExternalName or another proxy's (API not queried: "
            f"{api.service_skipped or 'unreachable'})",
            f"run kubectl get service -n {target.name.namespace} {target.name.name}",
            final=True,
        )
    return Step(
        name,
        Result.FAILED,
        f"the Service {target.name} does not exist",
        f"create it, or correct the name: kubectl get services -n {target.name.namespace}",
        final=True,
    )


def _not_proxied(facts: Facts, found: ApiService) -> Step:
    labels, spec = found.metadata.labels or {}, found.spec
    # In the order in which the agent decides: see pyproxy.source.
    if _PROXY_LABEL in labels:
        message = f"the label {_PROXY_LABEL}: {labels[_PROXY_LABEL]} leaves it to another proxy"
        fix = "remove the label, or check that this other proxy runs on the node"
    elif spec.type == "ExternalName":
        message = f"it is an ExternalName: DNS resolves it to {spec.external_name}, without a proxy"
        fix = f"resolve the name, and connect to {spec.external_name}"
    elif spec.cluster_ip == "None" or _HEADLESS_LABEL in labels:
        message = "it is headless: DNS resolves it to pod addresses, without a proxy"
        fix = "connect to the pod addresses, or create a Service with a cluster IP"
    elif not spec.cluster_ip:
        message = "it has no cluster IP yet"
        fix = "wait until the API server assigns one; kubectl describe service shows failures"
    else:
        message = "it exists, but the agent has not received it yet"
        fix = "retry in a few seconds; if the agent still does not have it, see its log"
    return Step("service", Result.FAILED, f"{facts.name}: {message}", fix, final=True)


def fields(facts: Facts) -> Step:
    """Check that all fields of the Service and its slices are valid."""
    problems = facts.agent.problems
    if not problems:
        return Step("fields", Result.OK, "all fields are valid")
    first = problems[0]
    return Step(
        "fields",
        Result.FAILED,
        f"{first.field}: {first.message}",
        _FIXES.get(first.reason, f"correct {first.field} of {first.kind} {first.name}"),
        tuple(str(problem) for problem in problems[1:]),
    )


def address(facts: Facts) -> Step:
    """Check that this node serves the destination, or any address of the Service."""
    target, routing, name = facts.agent.target, facts.agent.routing, "address"
    if routing is None:
        reason = "a sync is pending" if facts.agent.sync_pending else "no sync has included it"
        return Step(
            name,
            Result.FAILED,
            f"the Service is not programmed yet: {reason}",
            "retry in a few seconds",
        )
    if not target.served:
        return Step(
            name,
            Result.FAILED,
            f"this node does not serve {target.destination}: {target.reason}",
            target.fix or "see the other steps",
            final=True,
        )
    frontends = [
        f"{frontend_text(f, port.protocol)} ({f.scope.value})"
        for port in routing.ports
        for f in port.frontends
    ]
    lacking = [family.label for family in unserved_families(facts)]
    families = " and ".join(lacking)
    if not frontends and lacking:
        return Step(
            name,
            Result.FAILED,
            f"this node has no {families} address, so it serves no address of the Service",
            f"give this node an {families} address; for IPv6 see net.ipv6.conf.all.disable_ipv6",
        )
    if not frontends:
        return Step(
            name,
            Result.FAILED,
            "this node serves no address of the Service",
            "correct its invalid fields",
        )
    served = f"this node serves {listed(frontends)}"
    if lacking:
        message = f"{served}, but nothing in {families}, because it has no {families} address"
        return Step(name, Result.NOTE, message)
    return Step(name, Result.OK, served)


def selector(facts: Facts) -> Step:
    """Check that the selector matches pods."""
    api, name = facts.api, "selector"
    if api.api_error or api.service_skipped or api.service is None:
        reason = api.service_skipped or "unreachable"
        return Step(name, Result.SKIPPED, f"API not queried: {reason}")
    labels = api.service.spec.selector or {}
    if not labels:
        if any(part.endpoints for part in facts.agent.slices):
            return Step(name, Result.NOTE, "no selector: another program writes its EndpointSlices")
        return Step(
            name,
            Result.FAILED,
            "the Service has no selector and no endpoints",
            "set spec.selector to labels of its pods, or create an EndpointSlice",
        )
    return selected_pods(api, facts.name.namespace)


def selected_pods(api: ServiceLookup, namespace: str) -> Step:
    """Check that the selector of a Service that has one matches pods."""
    labels = (api.service.spec.selector if api.service else None) or {}
    text = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    if api.pods_skipped:
        return Step("selector", Result.SKIPPED, f"{text}; pods not queried: {api.pods_skipped}")
    if not api.pods:
        return Step(
            "selector",
            Result.FAILED,
            f"the selector {text} matches no pod in namespace {namespace}",
            f"compare with kubectl get pods -n {namespace} --show-labels",
        )
    names = listed([pod.metadata.name for pod in api.pods])
    return Step("selector", Result.OK, f"{text} matches {count(len(api.pods), 'pod')}: {names}")
