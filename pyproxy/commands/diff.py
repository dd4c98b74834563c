"""`pyproxy diff`: what a sync would write now, or after a change, without writing it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pyproxy.commands.asker import Asker, kernel
from pyproxy.commands.command import View
from pyproxy.commands.humanize import count
from pyproxy.commands.parts import BAD, DIM, GOOD, Part, text
from pyproxy.inspect.desired import DESIRED, Desired, desired
from pyproxy.inspect.difference import Difference, difference
from pyproxy.inspect.query import Nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is compared."""
    parser.add_argument(
        "-f",
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="say what would change if these manifests were applied; may be repeated",
    )
    parser.add_argument(
        "--show-netlink", action="store_true", help="show the messages as well, in hexadecimal"
    )


def ask(asker: Asker, namespace: argparse.Namespace) -> Difference:
    """Compare."""
    wanted = _wanted(asker, namespace)
    with kernel(wanted.settings) as dataplane:
        return difference(dataplane, wanted, netlink=namespace.show_netlink)


def _wanted(asker: Asker, namespace: argparse.Namespace) -> Desired:
    files = [Path(path) for path in namespace.file]
    if asker.settings.manifests:
        # A folder that is named here is what is asked about, whatever an agent may serve.
        return desired(asker.survey(asker.settings, files).snapshot())
    found = asker.ask(DESIRED, Nothing())
    return desired(asker.survey(found.settings, files).snapshot()) if files else found


def show(found: Difference) -> Iterator[Part]:
    """Show the plan, one line for each object."""
    if found.same:
        yield text("the kernel holds what it should", GOOD)
    for line in found.lines:
        yield text(line, BAD if line.startswith("delete") else GOOD)
    for line in found.rules:
        yield text(f"  {line}", BAD)
    if found.counts:
        what = ", ".join(count(number, kind) for kind, number in found.counts.items())
        yield text(f"{what} to write", DIM)
    if found.pending:
        yield text(f"{count(found.pending, 'service')} wait for the agent's next sync", DIM)
    for message in found.messages:
        yield text(message, DIM)


COMMAND = View(
    ask,
    show,
    add_arguments,
    status=lambda found: 0 if found.same else 1,
    statuses=("0 the kernel holds what it should", "1 it does not, or would not"),
).command()
