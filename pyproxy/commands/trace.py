"""`pyproxy trace`: what becomes of a packet, rule by rule, or what is becoming of packets now."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing

import msgspec

from pyproxy.agent import tracers
from pyproxy.agent.trace_source import NODE, packet_from
from pyproxy.commands import live
from pyproxy.commands.asker import Asker
from pyproxy.commands.command import Command, View
from pyproxy.commands.parts import BAD, DIM, GOOD, Part, table, text
from pyproxy.commands.sender import FORM, destination_of, sender_of
from pyproxy.dataplane.conntrack.known_flow import find_known_flow, trace_known_flow
from pyproxy.dataplane.packets import Delivered, Dropped, Masquerade, Rejected, TraceResult, Verdict
from pyproxy.errors import UsageError
from pyproxy.model.address import Port, address_text, backend_text
from pyproxy.netlink.conntrack import Conntrack

_IN_FULL = 16
"""Courses up to which each is told with its own steps, and not with its end alone."""


class Step(msgspec.Struct, frozen=True):
    """One thing that happens: in which chain, what, and the rule or element that does it."""

    chain: str
    what: str
    by: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """One end that the packet may come to.

    `share` is its probability, `verdict` "delivered", "rejected", "dropped" or "untouched" (for no
    Service's). `source` says whom the endpoint sees: "kept" or "masqueraded". `steps` are those
    that lead here alone.
    """

    share: float
    verdict: str
    says: str
    endpoint: str = ""
    source: str = ""
    steps: tuple[Step, ...] = ()


class Told(msgspec.Struct, frozen=True):
    """What becomes of a packet. `steps` come first in any case, `remarks` are about all of it."""

    packet: str
    source: str
    destination: str
    port: int
    protocol: str
    interface: str
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]
    remarks: tuple[str, ...]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="sender",
        metavar=FORM,
        help=f"who sends: an address, a pod, this node, or somebody outside the cluster ({NODE}; "
        "with --live anybody)",
    )
    parser.add_argument(
        "--to", required=True, metavar="ADDRESS:PORT[/udp|sctp]", help="where the packet goes"
    )
    parser.add_argument(
        "--interface",
        default="",
        metavar="NAME",
        help="by which it comes in, where that is not the one that leads back to the sender",
    )
    parser.add_argument(
        "--source-port",
        type=_port,
        metavar="PORT",
        help="the sender's port: a flow that conntrack knows goes the way that it went before",
    )
    live.add_arguments(parser)


def _ask(asker: Asker, namespace: argparse.Namespace) -> Told:
    target = destination_of(namespace.to)
    settings = asker.settings_in_force(target)
    sender = sender_of(namespace.sender or NODE, target, settings)
    packet = packet_from(sender, target, namespace.interface)
    if namespace.source_port is not None:
        with closing(Conntrack()) as conntrack:
            flow = find_known_flow(conntrack, packet, namespace.source_port)
        if flow is not None:
            return told(trace_known_flow(packet, flow))
    with closing(tracers.make(settings.mode, settings.iptables.flavour)) as tracer:
        return told(tracer.trace(packet))


def told(account: TraceResult) -> Told:
    """Write an account in texts and numbers alone."""
    packet, shared = account.packet, account.shared_steps()
    outcomes = [
        Outcome(
            float(path.probability),
            _verdict(path.verdict),
            str(path.verdict),
            backend_text(path.verdict.backend) if isinstance(path.verdict, Delivered) else "",
            _source(path.verdict),
            tuple(Step(s.chain, s.action, s.by) for s in path.steps[len(shared) :]),
        )
        for path in account.paths
    ]
    return Told(
        str(packet),
        address_text(packet.source),
        address_text(packet.destination),
        packet.port,
        packet.protocol.name.lower(),
        packet.interface,
        tuple(Step(s.chain, s.action, s.by) for s in shared),
        tuple(sorted(outcomes, key=lambda each: -each.share)),
        account.remarks,
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


def _show(value: Told) -> Iterator[Part]:
    yield text(value.packet, "bold")
    yield from _steps(value.steps)
    outcomes = value.outcomes
    if len(outcomes) == 1:
        (only,) = outcomes
        yield from _steps(only.steps)
        yield text(_sentence(only), _style(only))
    else:
        yield text(f"  then one of {len(outcomes)}, by a random number:")
        yield table(
            ("  SHARE", "WHAT BECOMES OF IT"),
            ((f"  {each.share:.2%}", text(_sentence(each), _style(each))) for each in outcomes),
        )
        for each in outcomes if len(outcomes) <= _IN_FULL else ():
            yield text(f"  {each.says}", DIM)
            yield from _steps(each.steps)
    for remark in value.remarks:
        yield text(remark, "yellow")


def _steps(steps: tuple[Step, ...]) -> Iterator[Part]:
    for step in steps:
        yield text(f"  {step.chain}: {step.what}")
        if step.by:
            yield text(f"      {step.by}", DIM)


def _sentence(outcome: Outcome) -> str:
    if outcome.verdict == "untouched":
        return f"no Service's: {outcome.says}"
    return outcome.says


def _style(outcome: Outcome) -> str:
    return {"delivered": GOOD, "untouched": ""}.get(outcome.verdict, BAD)


def _status(value: Told) -> int:
    return 0 if any(each.verdict in ("delivered", "untouched") for each in value.outcomes) else 1


def _port(value: str) -> Port:
    number = int(value) if value.isascii() and value.isdigit() else 0
    if not 0 < number < 1 << 16:
        raise UsageError(f"--source-port: {value!r} is not a port: use 1 to 65535")
    return Port(number)


_VIEW = View(
    _ask,
    _show,
    _add_arguments,
    _status,
    ("0 it may go through, or packets were seen", "1 rejected or dropped, or no packet was seen"),
).command()


def _run(namespace: argparse.Namespace) -> int:
    if namespace.live:
        return live.run(namespace)
    return _VIEW.run(namespace)


COMMAND = Command(_VIEW.add_arguments, _run, _VIEW.statuses)
