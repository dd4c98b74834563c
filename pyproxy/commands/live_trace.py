"""`pyproxy trace --live`: print the rules that real packets match, from nftrace."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from threading import Thread

from pyproxy.agent.trace_source import OUTSIDE, packet_from
from pyproxy.commands import printer
from pyproxy.commands.arguments import encoder, parse_count
from pyproxy.commands.output import BAD, DIM, GOOD, HEAD, Part, text
from pyproxy.commands.query_runner import QueryRunner, note
from pyproxy.commands.trace_arguments import destination_of, sender_of
from pyproxy.dataplane.conntrack.known_flow import flow_text
from pyproxy.dataplane.nftables.packet_trace import LiveTrace, PacketTrace
from pyproxy.errors import KernelError, UsageError
from pyproxy.inspect.humanize import listed
from pyproxy.interrupts import interrupted_by
from pyproxy.model.address import Address
from pyproxy.model.destination import Destination
from pyproxy.netlink import drop_guard
from pyproxy.netlink.drop_monitor import DropMonitor
from pyproxy.netlink.tracing import Match

_LATE = 4.0
"""Seconds in which the kernel discards packets whose next hop does not answer ARP (3), and more."""


_CHUNK = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--live` and its options."""
    group = parser.add_argument_group("live trace")
    group.add_argument(
        "--live",
        action="store_true",
        help="print the rules that real packets match, for at most 100 packets per second",
    )
    group.add_argument(
        "--count", type=parse_count("--count"), default=0, metavar="N", help="stop after N packets"
    )
    group.add_argument(
        "--timeout", type=_timeout, default=math.inf, metavar="SECONDS", help="stop after SECONDS"
    )
    group.add_argument(
        "--every-packet",
        action="store_true",
        help="trace packets of established connections too",
    )
    group.add_argument(
        "--until-input-ends",
        action="store_true",
        help="stop at the end of standard input, which follows that of a remote client",
    )


def run(namespace: argparse.Namespace) -> int:
    """Print packets until --count, --timeout or Ctrl-C; return 1 if there was none."""
    encode = encoder(namespace)
    match = _match(namespace)
    seen, complete = 0, True
    with (
        interrupted_by(signal.SIGTERM),
        _drop_monitor() as monitor,
        closing(LiveTrace(match, monitor)) as trace,
    ):
        if namespace.until_input_ends:
            Thread(target=_interrupt_at_end_of_input, name="input", daemon=True).start()
        endless = not namespace.count and math.isinf(namespace.timeout)
        # Without the flag only first packets are traced, and those pass all hooks.
        known = _note_offloaded(trace) if namespace.every_packet else frozenset()
        note("waiting for packets until Ctrl-C" if endless else "waiting for packets")
        for packet in _packets(trace, namespace.timeout, namespace.count, monitor is not None):
            if packet is None:
                if complete:
                    note("the kernel sent more than was read: some packets or drops are missing")
                complete = False
                continue
            if encode is not None:
                print(encode(packet), flush=True)
            else:
                printer.show(sys.stdout, _show(packet))
            seen += 1
        if namespace.every_packet:
            _note_offloaded(trace, known)
    return 0 if seen else 1


def _note_offloaded(trace: LiveTrace, known: frozenset[str] | None = None) -> frozenset[str]:
    """Print which connections pass no hook, and are not shown therefore; return them.

    `known` are those that were printed already, None at the start.
    """
    found = sorted(map(flow_text, trace.offloaded()))
    if known is None and (found or trace.has_fast_path()):
        note("offloaded connections pass no hook: only their packets before the offload are shown")
    if fresh := [each for each in found if each not in (known or ())]:
        note(f"offloaded {'before' if known is None else 'meanwhile'}: {listed(fresh)}")
    return frozenset(found)


def _interrupt_at_end_of_input() -> None:
    with suppress(OSError):  # it may be closed from the start
        while os.read(0, _CHUNK):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _packets(
    trace: LiveTrace, seconds: float, count: int, monitored: bool
) -> Iterator[PacketTrace | None]:
    """Yield `count` packets, and what the kernel drops of them after a while."""
    undecided = traced = 0
    for packet in trace.packet_traces(seconds):
        yield packet
        if packet is not None:
            traced += 1
            undecided += not packet.end.startswith("dropped")
            if traced == count:
                break
    else:
        return
    if monitored and undecided:
        note(f"waiting {_LATE:.0f} s for late drops")
        for packet in trace.packet_traces(_LATE):
            if packet is not None and not packet.traced:
                yield packet


@contextmanager
def _drop_monitor() -> Iterator[DropMonitor | None]:
    """Have the kernel report dropped packets if it can, until the end of this process at most."""
    with ExitStack() as stack:
        monitor: DropMonitor | None = None
        try:
            monitor = stack.enter_context(closing(DropMonitor()))
            # It must run before the monitor is on, because this process may be killed at any time.
            stack.enter_context(drop_guard.running())
            stack.callback(monitor.close)  # before the guard ends; idempotent
            monitor.start()
        except (KernelError, OSError) as error:  # OSError: no process can be started
            stack.close()
            monitor = None
            note(f"drop reasons are not shown: {error}")
        yield monitor


def _match(namespace: argparse.Namespace) -> Match:
    target = destination_of(namespace.to)
    return Match(
        target.address,
        target.protocol,
        target.port,
        _source(namespace, target),
        namespace.every_packet,
    )


def _source(namespace: argparse.Namespace, target: Destination) -> Address | None:
    sender = namespace.sender
    if sender is None:
        return None
    if sender == OUTSIDE:
        raise UsageError(f"--from {OUTSIDE}: --live needs an address: give one, or omit --from")
    settings = QueryRunner(namespace).agent_settings()
    return packet_from(sender_of(sender, target, settings), target).source


def _show(packet: PacketTrace) -> Iterator[Part]:
    if packet.traced:
        origin = f"came in by {packet.incoming}" if packet.incoming else "sent by this node"
    else:
        origin = "dropped without a trace, or after it"
    yield text(f"{packet.source} -> {packet.destination}, {origin}", HEAD)
    for rule in packet.rules:
        if rule.new_destination:
            yield text(f"  translated to {rule.new_destination}", GOOD)
        if rule.rule:
            yield text(f"  {rule.table} {rule.chain}: {rule.rule}")
            yield text(f"      {rule.verdict}", DIM)
    yield text(f"  {packet.end}", BAD if packet.end.startswith("dropped") else "")
    for drop in packet.drops:
        if drop.reply:
            yield text(f"  the kernel dropped a reply {drop.cause}", BAD)
        if (drop.source, drop.destination) != (packet.source, packet.destination):
            yield text(f"      it was {drop.source} -> {drop.destination}", DIM)


def _timeout(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    # `not >` also rejects NaN, because all comparisons with it are false.
    if not seconds > 0:
        raise UsageError(f"--timeout: {value!r} is not a number of seconds above 0")
    return seconds
