"""`pyproxy explain`: the whole way from a Service to a packet, each step with a tick or a cross."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing

from pyproxy.commands.asker import Asker, kernel
from pyproxy.commands.command import View
from pyproxy.commands.parts import BAD, DIM, GOOD, Part, Text, table, text
from pyproxy.config.settings import Settings
from pyproxy.dataplane.conntrack.frontends import flow_targets, is_stale
from pyproxy.dataplane.interface import NodeRouting, StateDiff
from pyproxy.errors import KernelError, PyproxyError, UsageError
from pyproxy.inspect.evidence import EVIDENCE, Evidence, Target
from pyproxy.inspect.explain import Case, Explanation, KernelFacts, Mark, explain
from pyproxy.inspect.lookup import LOOKUP, Named
from pyproxy.inspect.target import parse
from pyproxy.model.address import Address, Backend, backend_text, parse_address
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.netlink.flows import Flow
from pyproxy.policy.routing import ServiceRouting
from pyproxy.source.api_objects import ServiceLookup

_SIGNS = {
    Mark.TICK: ("✓", GOOD),
    Mark.CROSS: ("✗", BAD),
    Mark.NOTE: ("•", "yellow"),
    Mark.SKIPPED: ("-", DIM),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked about."""
    parser.add_argument(
        "target",
        metavar="NAMESPACE/NAME|ADDRESS:PORT[/udp]",
        help="a Service, or what a client connects to",
    )
    parser.add_argument(
        "--from",
        dest="sender",
        metavar="ADDRESS",
        help="the client that source ranges may shut out",
    )


def ask(asker: Asker, namespace: argparse.Namespace) -> Explanation:
    """Gather the facts, and explain them."""
    parse(namespace.target)
    sender = _sender(namespace.sender)
    evidence = asker.ask(EVIDENCE, Target(namespace.target))
    case = Case(evidence, _lookup(asker, evidence), _kernel(evidence), sender)
    return explain(namespace.target, case)


def _sender(given: str | None) -> Address | None:
    try:
        return parse_address(given) if given else None
    except ValueError as error:
        raise UsageError(f"--from: {error}") from error


def _lookup(asker: Asker, evidence: Evidence) -> ServiceLookup:
    name = evidence.resolved.name
    if name is None:
        return ServiceLookup(
            service_skipped="no name to ask for", pods_skipped="no name to ask for"
        )
    # Who answered before has a client for the API already, with the rights that count here.
    return asker.ask(LOOKUP, Named(str(name)))


def _kernel(evidence: Evidence) -> KernelFacts:
    answer = evidence.routing
    if answer is None:
        return KernelFacts(not_read="nothing is programmed", flows_not_read="nothing is programmed")
    held, not_read = _held(evidence.settings, answer, evidence.node_routing)
    try:
        return KernelFacts(held, not_read, flows=tuple(_stale(answer)))
    except KernelError as error:
        return KernelFacts(held, not_read, flows_not_read=str(error))


def _held(
    settings: Settings, answer: ServiceRouting, node: NodeRouting
) -> tuple[StateDiff | None, str]:
    try:
        with kernel(settings) as dataplane:
            return dataplane.compare(answer, node), ""
    except PyproxyError as error:
        return None, str(error)


def _stale(answer: ServiceRouting) -> Iterator[str]:
    with closing(Conntrack()) as table:
        for key, target in flow_targets(answer):
            for piece in table.flows(key.family, key.protocol, key.destination):
                for flow in piece:
                    if flow.destination == key.destination and is_stale(flow, (target,)):
                        yield _told(flow)


def _told(flow: Flow) -> str:
    source, destination, now = (
        backend_text(Backend(each)) for each in (flow.source, flow.destination, flow.reply_source)
    )
    return f"{source} to {destination} is answered by {now}"


def show(found: Explanation) -> Iterator[Part]:
    """Show the steps, and what they come to."""
    yield table(("", "STEP", found.target), _rows(found))
    yield text("")
    yield text(found.verdict, GOOD if found.well else BAD)
    if found.fix:
        yield text(f"what to do: {found.fix}")


def _rows(found: Explanation) -> Iterator[tuple[Text, ...]]:
    for step in found.steps:
        sign, style = _SIGNS[step.mark]
        yield text(sign, style), text(step.name), text(step.says)
        for line in step.lines:
            yield text(""), text(""), text(line, DIM)


COMMAND = View(
    ask,
    show,
    add_arguments,
    status=lambda found: 0 if found.well else 1,
    statuses=("0 nothing is wrong", "1 something is"),
).command()
