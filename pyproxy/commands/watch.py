"""`pyproxy watch`: changes as they are programmed, with their latency."""

from __future__ import annotations

import argparse
import sys

import msgspec

from pyproxy.commands import output
from pyproxy.commands.arguments import add_output, add_source, output_of
from pyproxy.commands.asker import Asker
from pyproxy.commands.command import Command
from pyproxy.commands.humanize import clock, count, duration
from pyproxy.commands.parts import BAD, DIM, GOOD, Line, text
from pyproxy.inspect.snapshot import Change
from pyproxy.inspect.watch import WATCH, Of

_STYLES = {"added": GOOD, "removed": BAD}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is followed."""
    parser.add_argument("-n", "--namespace", default="", help="changes of one namespace")
    add_output(parser, formats=("table", "json"))
    add_source(parser)


def run(namespace: argparse.Namespace) -> int:
    """Tell of changes until Ctrl-C, or until the agent ends."""
    encode = output_of(namespace)
    for change in Asker(namespace).follow(WATCH, Of(namespace.namespace)):
        if encode is not None:
            print(msgspec.json.encode(change).decode(), flush=True)
        else:
            output.show(sys.stdout, [line(change)])
    return 0


def line(change: Change) -> Line:
    """Write a change as one line, in columns of their own width."""
    latency = "" if change.latency is None else f", {duration(change.latency)} after it was read"
    return Line(
        (
            text(f"{clock(change.ended)}  ", DIM),
            text(f"{change.what:<8}", _STYLES.get(change.what, "")),
            text(f"{change.service:<40} {count(change.endpoints, 'endpoint'):<14}"),
            text(f" in a sync of {duration(change.took)}{latency}", DIM),
        )
    )


COMMAND = Command(add_arguments, run, ("0 the agent has ended",))
