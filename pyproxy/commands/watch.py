"""`pyproxy watch`: print changes as they are programmed, with their latency."""

from __future__ import annotations

import argparse
import sys

import msgspec

from pyproxy.commands import printer
from pyproxy.commands.arguments import add_output, add_source, encoder
from pyproxy.commands.command import Command
from pyproxy.commands.output import BAD, DIM, GOOD, StyledLine, text
from pyproxy.commands.query_runner import QueryRunner
from pyproxy.inspect.humanize import clock, count, duration
from pyproxy.inspect.queries import WATCH, WatchArgs
from pyproxy.inspect.snapshot import Change

_STYLES = {"added": GOOD, "removed": BAD}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the changes to print."""
    parser.add_argument("-n", "--namespace", default="", help="print changes of one namespace")
    add_output(parser, formats=("table", "json"))
    add_source(parser)


def run(namespace: argparse.Namespace) -> int:
    """Print changes until Ctrl-C, or until the agent stops."""
    encode = encoder(namespace)
    for change in QueryRunner(namespace).stream(WATCH, WatchArgs(namespace.namespace)):
        if encode is not None:
            print(msgspec.json.encode(change).decode(), flush=True)
        else:
            printer.show(sys.stdout, [line(change)])
    return 0


def line(change: Change) -> StyledLine:
    """Return a change as one line with columns of fixed width."""
    latency = "" if change.latency is None else f", latency {duration(change.latency)}"
    return StyledLine(
        (
            text(f"{clock(change.ended)}  ", DIM),
            text(f"{change.type:<8}", _STYLES.get(change.type, "")),
            text(f"{change.service:<40} {count(change.endpoints, 'endpoint'):<14}"),
            text(f" sync {duration(change.sync_duration)}{latency}", DIM),
        )
    )


COMMAND = Command(add_arguments, run, ("0 the agent stopped",))
