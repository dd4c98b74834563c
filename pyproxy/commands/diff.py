"""`pyproxy diff`: print what a sync would write now, or after a change."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pyproxy.commands.command import View
from pyproxy.commands.output import BAD, DIM, GOOD, Part, text
from pyproxy.commands.query_runner import QueryRunner
from pyproxy.inspect.diff import DesiredState, Diff, desired_state, diff
from pyproxy.inspect.humanize import count
from pyproxy.inspect.kernel_facts import kernel
from pyproxy.inspect.queries import DESIRED, NoArgs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is compared."""
    parser.add_argument(
        "-f",
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="compare as if these manifests were applied; may be repeated",
    )
    parser.add_argument(
        "--show-netlink", action="store_true", help="print the netlink messages in hexadecimal"
    )


def fetch(queries: QueryRunner, namespace: argparse.Namespace) -> Diff:
    """Compare desired state and kernel state."""
    desired = _desired(queries, namespace)
    with kernel(desired.settings) as dataplane:
        return diff(dataplane, desired, netlink=namespace.show_netlink)


def _desired(queries: QueryRunner, namespace: argparse.Namespace) -> DesiredState:
    files = [Path(path) for path in namespace.file]
    if queries.settings.manifests:
        # --manifests names the desired state, even if an agent serves another folder or an API.
        return desired_state(queries.oneshot(queries.settings, files).snapshot())
    found = queries.query(DESIRED, NoArgs())
    if not files:
        return found
    return desired_state(queries.oneshot(found.settings, files).snapshot())


def show(found: Diff) -> Iterator[Part]:
    """Yield a line for each object to write."""
    if found.same:
        yield text("the kernel state is the desired state", GOOD)
    for line in found.lines:
        yield text(line, BAD if line.startswith("delete") else GOOD)
    for line in found.rules:
        yield text(f"  {line}", BAD)
    if found.counts:
        total = ", ".join(count(number, kind) for kind, number in found.counts.items())
        yield text(f"to write: {total}", DIM)
    if found.pending:
        yield text(f"pending in the agent: {count(found.pending, 'service')}", DIM)
    for message in found.messages:
        yield text(message, DIM)


COMMAND = View(
    fetch,
    show,
    add_arguments,
    status=lambda found: 0 if found.same else 1,
    statuses=("0 no difference", "1 differences"),
).command()
