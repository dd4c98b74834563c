"""`pyproxy trace --live`: the kernel's own word on the packets that pass now."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pyproxy.agent.trace_source import OUTSIDE, packet_from
from pyproxy.commands import output
from pyproxy.commands.arguments import output_of
from pyproxy.commands.asker import Asker, remark
from pyproxy.commands.parts import BAD, DIM, Part, text
from pyproxy.commands.sender import destination_of, sender_of
from pyproxy.dataplane.nftables.live import LiveTrace
from pyproxy.dataplane.nftables.packet_trace import PacketTrace
from pyproxy.errors import UsageError
from pyproxy.model.address import Address
from pyproxy.model.destination import Destination
from pyproxy.netlink.tracing import Match


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `--live` brings."""
    group = parser.add_argument_group("watching the kernel do it")
    group.add_argument(
        "--live",
        action="store_true",
        help="have the kernel tell which rules packets like this one meet, at most 100 a second",
    )
    group.add_argument("--count", type=_whole, default=0, metavar="N", help="end after N packets")
    group.add_argument(
        "--timeout", type=_seconds, default=math.inf, metavar="SECONDS", help="end after so long"
    )
    group.add_argument(
        "--every-packet",
        action="store_true",
        help="packets of known connections too, which meet few of the rules",
    )


def run(namespace: argparse.Namespace) -> int:
    """Tell of packets until enough have been seen, or long enough; 1 where there was none."""
    encode = output_of(namespace)
    seen = 0
    with _ending_well(), closing(LiveTrace(_match(namespace))) as trace:
        remark("waiting for packets, until Ctrl-C" if _endless(namespace) else "waiting")
        for journey in trace.packet_traces(namespace.timeout):
            if journey is None:
                remark("some packets passed too fast to be told of")
                continue
            if encode is not None:
                print(encode(journey), flush=True)
            else:
                output.show(sys.stdout, _show(journey))
            seen += 1
            if seen == namespace.count:
                break
    return 0 if seen else 1


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
        raise UsageError(f"--from {OUTSIDE}: with --live give an address, or leave --from away")
    settings = Asker(namespace).settings_in_force(target)
    return packet_from(sender_of(sender, target, settings), target).source


def _endless(namespace: argparse.Namespace) -> bool:
    return not namespace.count and math.isinf(namespace.timeout)


def _show(journey: PacketTrace) -> Iterator[Part]:
    how = f"came in by {journey.came_in_by}" if journey.came_in_by else "sent by this node"
    yield text(f"{journey.source} -> {journey.destination}, {how}", "bold")
    for met in journey.met:
        if met.now_to:
            yield text(f"  now to {met.now_to}", "green")
        if met.rule:
            yield text(f"  {met.table} {met.chain}: {met.rule}")
            yield text(f"      {met.verdict}", DIM)
    yield text(f"  {journey.end}", BAD if journey.end.startswith("taken") else "")


@contextmanager
def _ending_well() -> Iterator[None]:
    """Inside it SIGTERM ends the program as Ctrl-C does, so that nothing stays traced."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _whole(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise UsageError(f"--count: {value!r} is not a number from 0")
    return int(value)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"--timeout: {value!r} is not a number of seconds above 0")
    return seconds
