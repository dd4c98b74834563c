"""Connections from this node to endpoints and frontends."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.probes import TIMEOUT, Outcome, Probe, ProbeFacts
from pyproxy.inspect.explain.findings import Finding, merged
from pyproxy.inspect.explain.step import Result, Step, not_checked
from pyproxy.inspect.facts import Facts
from pyproxy.inspect.humanize import count
from pyproxy.model.address import Protocol, address_text, backend, backend_text

NAME = "probes"

_PORT_FIX = (
    "compare the port with those that the application listens on: kubectl exec POD -- ss -lntu; "
    "then correct targetPort, or the application's configuration"
)


def probes(facts: Facts) -> Step:
    """Check that endpoints respond to connections from this node, and so do frontends."""
    part = facts.path.probes
    if isinstance(part, NotRead):
        return not_checked(NAME, part)
    answered = sum(each.outcome is Outcome.ANSWERED for each in part.endpoints)
    through = sum(each.outcome is Outcome.ANSWERED for each in part.frontends)
    passed = f"{count(answered, 'endpoint')} and {count(through, 'frontend')} accept connections"
    if part.left_out:
        passed += f"; {part.left_out:,} not tried"
    return merged(NAME, _findings(part), passed)


def _findings(part: ProbeFacts) -> Iterator[Finding]:
    for each in part.endpoints:
        yield from _endpoint(each)
    # A frontend's connection goes to any endpoint, so one that fails explains the frontend too.
    if all(each.outcome is Outcome.ANSWERED for each in part.endpoints):
        for each in part.frontends:
            yield from _frontend(each)


def _endpoint(probe: Probe) -> Iterator[Finding]:
    target = backend_text(backend(probe.target.address, probe.target.port))
    if probe.outcome is Outcome.ANSWERED:
        return
    if _is_undecided(probe):
        yield Finding(Result.UNDECIDED, _undecided(probe), endpoint=target)
        return
    message, fix = {
        Outcome.REFUSED: (f"no process listens at {{}}: {_refusal(probe)}", _PORT_FIX),
        Outcome.UNREACHABLE: (
            f"there is no way from this node to {{}}: {_error(probe)}",
            "check the pod network between this node and the endpoint's: ip route get ADDRESS, and "
            "the network plugin's pods on both",
        ),
        Outcome.FILTERED: (
            f"a firewall rejects connections from this node to {{}}: {_error(probe)}",
            "find the rule on the host that sends this error; a NetworkPolicy may be its cause",
        ),
        Outcome.SILENT: (
            f"{{}} did not respond within {TIMEOUT:g} s: a firewall drops the packets, or they get "
            "lost",
            "look for the packets on the endpoint's node: tcpdump -ni any host ADDRESS",
        ),
    }[probe.outcome]
    yield Finding(Result.FAILED, message, fix, target)


def _frontend(probe: Probe) -> Iterator[Finding]:
    target = backend_text(backend(probe.target.address, probe.target.port))
    if probe.outcome is Outcome.ANSWERED:
        return
    if _is_undecided(probe):
        yield Finding(Result.UNDECIDED, _undecided(probe), endpoint=target)
        return
    error = probe.error or f"no response within {TIMEOUT:g} s"
    yield Finding(
        Result.FAILED,
        f"all endpoints respond, but connections from this node to {target} fail: {error}",
        f"run pyproxy trace --live --to {probe.target} to see the packet's way through the rules",
    )


def _is_undecided(probe: Probe) -> bool:
    if probe.outcome is Outcome.UNKNOWN:
        return True
    # An application need not respond to an empty datagram.
    return probe.target.protocol is Protocol.UDP and probe.outcome is Outcome.SILENT


def _undecided(probe: Probe) -> str:
    if probe.outcome is Outcome.UNKNOWN:
        return f"this node cannot probe {{}} over {probe.target.protocol.name}: {probe.error}"
    return "{} did not respond to an empty UDP datagram, and need not"


def _refusal(probe: Probe) -> str:
    if probe.target.protocol is Protocol.UDP:
        return f"{_error(probe)}, port unreachable"
    return "the connection is reset"


def _error(probe: Probe) -> str:
    sender = f" from {address_text(probe.by)}" if probe.by else ""
    kind = "ICMP" if probe.by else "error"
    return f"{kind}{sender} ({probe.error})"
