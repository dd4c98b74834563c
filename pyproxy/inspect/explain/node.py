"""Steps on this node: source ranges, kernel state, conntrack entries."""

from __future__ import annotations

from pyproxy.inspect.explain.step import Result, Step
from pyproxy.inspect.facts import Facts
from pyproxy.inspect.humanize import count, listed
from pyproxy.model.address import Family, Protocol, address_text
from pyproxy.policy.routing import Scope

_FIELD = "spec.loadBalancerSourceRanges"


def source_ranges(facts: Facts) -> Step:
    """Check that the source ranges allow the client."""
    name, routing = "source ranges", facts.agent.routing
    # Source ranges apply to load balancer addresses only.
    restricted = {
        port.family
        for port in (routing.ports if routing else ())
        for f in port.frontends
        if f.scope is Scope.LOAD_BALANCER and _is_target(facts, f.address)
    }
    if routing is None or not routing.source_ranges or not restricted:
        return Step(name, Result.OK, "all clients are allowed")
    ranges = listed([str(network) for network in facts.service.source_ranges])
    client = facts.client
    if client is not None and not any(client in network for network in routing.source_ranges):
        return Step(
            name,
            Result.FAILED,
            f"{address_text(client)} is in none of the source ranges ({ranges}): its packets to "
            "load balancer addresses are dropped",
            f"add it to {_FIELD}, or connect from an address within them",
        )
    closed = [family.label for family in sorted(restricted) if not _has_range(facts, family)]
    if closed:
        families = " or ".join(closed)
        return Step(
            name,
            Result.FAILED,
            f"the source ranges allow no {families} client",
            f"add a {families} range to {_FIELD}",
        )
    return Step(name, Result.NOTE, f"load balancer addresses allow only clients in {ranges}")


def _is_target(facts: Facts, address: bytes) -> bool:
    destination = facts.agent.target.destination
    return destination is None or destination.address == address


def _has_range(facts: Facts, family: Family) -> bool:
    # A range of 0.0.0.0/32 or ::/128, whose last address is all zeros, contains no client.
    return any(
        network.family is family and any(network.last) for network in facts.service.source_ranges
    )


def kernel(facts: Facts) -> Step:
    """Check that the kernel state of the Service is the desired state."""
    name, diff = "kernel", facts.kernel.diff
    if facts.agent.routing is None:
        return Step(name, Result.SKIPPED, "not programmed")
    if diff is None:
        return Step(name, Result.SKIPPED, f"not read: {facts.kernel.not_read}")
    if not diff:
        return Step(name, Result.OK, "the kernel state is the desired state")
    differences = [
        *([f"{count(len(diff.missing), diff.kind)} missing"] if diff.missing else []),
        *([f"{count(len(diff.extra), diff.kind)} unexpected"] if diff.extra else []),
        *diff.rules,
    ]
    return Step(
        name,
        Result.FAILED,
        f"the kernel state is not the desired state: {', '.join(differences)}",
        "wait for the agent to repair it; if it recurs, another program changes these tables, and "
        "the agent's log names it",
        (
            *(f"missing: {line}" for line in diff.missing),
            *(f"unexpected: {line}" for line in diff.extra),
        ),
    )


def conntrack(facts: Facts) -> Step:
    """Check that no conntrack entry leads to an endpoint that the Service no longer uses."""
    name, stale = "conntrack", facts.kernel.stale_flows
    # The agent deletes stale flows of UDP and SCTP, and never those of TCP.
    datagrams = [port for port in facts.ports() if port.port.protocol is not Protocol.TCP]
    if not datagrams:
        return Step(name, Result.OK, "TCP connections end with their endpoint")
    if stale is None:
        return Step(name, Result.SKIPPED, f"not read: {facts.kernel.flows_not_read}")
    if not stale:
        return Step(name, Result.OK, "no stale entry")
    first = datagrams[0]
    protocol = first.port.protocol.name.lower()
    return Step(
        name,
        Result.FAILED,
        f"{count(len(stale), 'stale entry', 'stale entries')}: {listed(stale, 3)}",
        f"run conntrack -D -p {protocol} --orig-port-dst {first.port.port}; if they recur, see the "
        "agent's log, because it deletes stale entries after each commit",
        stale,
    )
