"""`pyproxy trace`: trace a packet through the rules, or watch real packets."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing

import msgspec

from pyproxy.agent.node_addresses import local_addresses
from pyproxy.agent.trace_source import NODE, packet_from
from pyproxy.commands import live_trace
from pyproxy.commands.command import Command, View
from pyproxy.commands.output import BAD, DIM, GOOD, HEAD, Part, Text, table, text
from pyproxy.commands.query_runner import QueryRunner
from pyproxy.commands.trace_arguments import SENDER_FORM, destination_of, port_of, sender_of
from pyproxy.dataplane import modes
from pyproxy.dataplane.conntrack.known_flow import find_known_flow, trace_known_flow
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    Masquerade,
    Offload,
    Rejected,
    TraceResult,
    TraceStep,
    Verdict,
)
from pyproxy.model.address import address_text, backend_text
from pyproxy.netlink.conntrack import Conntrack

_MAX_DETAILED = 16
"""Paths up to which the output has the steps of each; with more it has their verdicts only."""


class Outcome(msgspec.Struct, frozen=True):
    """One path that the packet may take.

    `verdict` is "delivered", "rejected", "dropped" or "untouched" (not a Service's address),
    `message` the verdict in words. `source` is "kept" or "masqueraded". `steps` are those after the
    shared ones. `offload` concerns later packets of the connection, and is null without
    --flow-offload.
    """

    probability: float
    verdict: str
    message: str
    endpoint: str = ""
    source: str = ""
    steps: tuple[TraceStep, ...] = ()
    offload: Offload | None = None


class Trace(msgspec.Struct, frozen=True):
    """A traced packet. `steps` are those that all outcomes share."""

    packet: str
    source: str
    destination: str
    port: int
    protocol: str
    interface: str
    steps: tuple[TraceStep, ...]
    outcomes: tuple[Outcome, ...]
    remarks: tuple[str, ...]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="sender",
        metavar=SENDER_FORM,
        help="sender: an address, a pod, this node, or a client outside the cluster (default "
        f"{NODE}; with --live any)",
    )
    parser.add_argument(
        "--to", required=True, metavar="ADDRESS:PORT[/udp|sctp]", help="destination of the packet"
    )
    parser.add_argument(
        "--interface",
        default="",
        metavar="NAME",
        help="input interface (default: the one with the route back to the sender)",
    )
    parser.add_argument(
        "--source-port",
        type=port_of,
        metavar="PORT",
        help="the sender's port, to follow an established flow of conntrack",
    )
    live_trace.add_arguments(parser)


def _fetch(queries: QueryRunner, namespace: argparse.Namespace) -> Trace:
    target = destination_of(namespace.to)
    settings = queries.agent_settings()
    sender = sender_of(namespace.sender or NODE, target, settings)
    packet = packet_from(sender, target, namespace.interface)
    if namespace.source_port is not None:
        # conntrack translates an established flow before any rule of the nat table.
        with closing(Conntrack()) as conntrack:
            flow = find_known_flow(conntrack, packet, namespace.source_port)
        if flow is not None:
            return trace_of(trace_known_flow(packet, flow))
    with closing(modes.of(settings.mode).tracer(settings, local_addresses)) as tracer:
        return trace_of(tracer.trace(packet))


def trace_of(result: TraceResult) -> Trace:
    """Return a tracer's result in texts and numbers, the most probable outcome first."""
    packet, shared = result.packet, result.shared_steps()
    outcomes = [
        Outcome(
            float(path.probability),
            _verdict(path.verdict),
            str(path.verdict),
            backend_text(path.verdict.backend) if isinstance(path.verdict, Delivered) else "",
            _source(path.verdict),
            path.steps[len(shared) :],
            path.offload,
        )
        for path in result.paths
    ]
    return Trace(
        str(packet),
        address_text(packet.source),
        address_text(packet.destination),
        packet.port,
        packet.protocol.name.lower(),
        packet.interface,
        shared,
        tuple(sorted(outcomes, key=lambda each: -each.probability)),
        result.remarks,
    )


def _verdict(verdict: Verdict) -> str:
    match verdict:
        case Delivered():
            return "delivered"
        case Rejected():
            return "rejected"
        case Dropped():
            return "dropped"
    return "untouched"


def _source(verdict: Verdict) -> str:
    if isinstance(verdict, Rejected | Dropped):
        return ""
    return "kept" if verdict.masquerade is Masquerade.NONE else "masqueraded"


def show(trace: Trace) -> Iterator[Part]:
    """Yield the steps, the outcomes, and whether the connection is offloaded later."""
    yield text(trace.packet, HEAD)
    yield from _steps(trace.steps)
    outcomes = trace.outcomes
    offloads = list(dict.fromkeys(each.offload for each in outcomes if each.offload))
    # With one outcome all its steps are shared or its own: no table is needed.
    if len(outcomes) == 1:
        (only,) = outcomes
        yield from _steps(only.steps)
        yield text(_message(only), _style(only))
    else:
        yield text(f"  then one of {len(outcomes)} outcomes, at random:")
        columns = ("  PROBABILITY", "OUTCOME", "CONNECTION")[: 2 + (len(offloads) > 1)]
        yield table(columns, (_row(each)[: len(columns)] for each in outcomes))
        for each in outcomes if len(outcomes) <= _MAX_DETAILED else ():
            yield text(f"  {each.message}:", DIM)
            yield from _steps(each.steps)
            if len(offloads) > 1 and each.offload:
                yield from _offload(each.offload, "  ")
    if len(offloads) == 1:
        yield from _offload(offloads[0], "")
    for remark in trace.remarks:
        yield text(remark, "yellow")


def _row(outcome: Outcome) -> tuple[str | Text, ...]:
    message = text(outcome.message, _style(outcome))
    return f"  {outcome.probability:.2%}", message, str(outcome.offload or "")


def _offload(offload: Offload, indent: str) -> Iterator[Part]:
    yield text(f"{indent}the connection is {offload}")
    if offload.by:
        yield text(f"{indent}    {offload.by}", DIM)


def _steps(steps: tuple[TraceStep, ...]) -> Iterator[Part]:
    for step in steps:
        yield text(f"  {step.chain}: {step.action}")
        if step.by:
            yield text(f"      {step.by}", DIM)


def _message(outcome: Outcome) -> str:
    if outcome.verdict == "untouched":
        return f"not a Service address: {outcome.message}"
    return outcome.message


def _style(outcome: Outcome) -> str:
    return {"delivered": GOOD, "untouched": ""}.get(outcome.verdict, BAD)


def _status(trace: Trace) -> int:
    return 0 if any(each.verdict in ("delivered", "untouched") for each in trace.outcomes) else 1


_VIEW = View(
    _fetch,
    show,
    _add_arguments,
    _status,
    (
        "0 an outcome delivers the packet or leaves it untouched (--live: packets seen)",
        "1 rejected or dropped (--live: no packet seen)",
    ),
).command()


def _run(namespace: argparse.Namespace) -> int:
    if namespace.live:
        return live_trace.run(namespace)
    return _VIEW.run(namespace)


COMMAND = Command(_VIEW.add_arguments, _run, _VIEW.statuses)
