"""On this node: who is let in, what the kernel holds, and which flows still go elsewhere."""

from __future__ import annotations

from pyproxy.inspect.explain.case import Case, Mark, Step, listed, plural
from pyproxy.model.address import Family, Protocol, address_text
from pyproxy.policy.routing import Scope


def sources(case: Case) -> Step:
    """Do source ranges let the client in."""
    name, routing = "source ranges", case.evidence.routing
    guarded = {
        port.family
        for port in (routing.ports if routing else ())
        for f in port.frontends
        if f.scope is Scope.LOAD_BALANCER and _is_meant(case, f.address)
    }
    if routing is None or not routing.source_ranges or not guarded:
        return Step(name, Mark.TICK, "everybody may come in")
    ranges = case.service.source_ranges
    told = listed([str(network) for network in ranges])
    field = "spec.loadBalancerSourceRanges"
    if case.sender is not None and not any(case.sender in r for r in routing.source_ranges):
        return Step(
            name,
            Mark.CROSS,
            f"{address_text(case.sender)} is in none of its source ranges ({told}): dropped at its "
            "load balancer addresses",
            f"add it to {field}, or connect from within them",
        )
    shut = [family.label for family in sorted(guarded) if _nobody(case, family)]
    if shut:
        return Step(
            name,
            Mark.CROSS,
            f"its source ranges let nobody in by {' or '.join(shut)}",
            f"add a range of that family to {field}",
        )
    return Step(name, Mark.NOTE, f"its load balancer addresses let in {told} alone")


def _is_meant(case: Case, address: bytes) -> bool:
    destination = case.evidence.resolved.destination
    return destination is None or destination.address == address


def _nobody(case: Case, family: Family) -> bool:
    return not any(
        network.family is family and any(network.last) for network in case.service.source_ranges
    )


def elements(case: Case) -> Step:
    """Does the kernel hold what it should of it."""
    name, held = "kernel", case.kernel.held
    if case.evidence.routing is None:
        return Step(name, Mark.SKIPPED, "nothing of it is programmed")
    if held is None:
        return Step(name, Mark.SKIPPED, f"not read: {case.kernel.not_read}")
    if not held:
        return Step(name, Mark.TICK, "holds all of it, and nothing else")
    what = [
        *([f"{plural(len(held.missing), held.kind)} missing"] if held.missing else []),
        *([f"{plural(len(held.extra), held.kind)} that should not be"] if held.extra else []),
        *held.rules,
    ]
    return Step(
        name,
        Mark.CROSS,
        f"the kernel does not hold what it should: {', '.join(what)}",
        "the agent repairs that as soon as it notices; if it comes again, another program writes "
        "to the table, and the agent's log names it",
        (
            *(f"missing: {line}" for line in held.missing),
            *(f"should not be: {line}" for line in held.extra),
        ),
    )


def flows(case: Case) -> Step:
    """Do known flows go where the Service sends nobody any more."""
    name, found = "flows", case.kernel.flows
    datagrams = [port for port in case.ports() if port.port.protocol is not Protocol.TCP]
    if not datagrams:
        return Step(name, Mark.TICK, "TCP: connections end by themselves with their endpoint")
    if found is None:
        return Step(name, Mark.SKIPPED, f"not read: {case.kernel.flows_not_read}")
    if not found:
        return Step(name, Mark.TICK, "none goes elsewhere")
    first = datagrams[0]
    protocol = first.port.protocol.name.lower()
    return Step(
        name,
        Mark.CROSS,
        f"{plural(len(found), 'flow')} still go where it sends nobody: {listed(list(found), 3)}",
        f"delete them with conntrack -D -p {protocol} --orig-port-dst {first.port.port}; the agent "
        "does so after each change, and its metrics tell of failures",
        found,
    )
