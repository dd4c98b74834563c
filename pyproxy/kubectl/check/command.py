"""`kubectl pyproxy check`: test connections through Services of each kind, on all nodes."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pyproxy.commands.arguments import add_output, parse_seconds
from pyproxy.errors import UsageError
from pyproxy.interrupts import interrupted_by
from pyproxy.kubectl import report
from pyproxy.kubectl.agents import find_agents
from pyproxy.kubectl.check.junit import junit
from pyproxy.kubectl.check.matrix import show
from pyproxy.kubectl.check.run import Check, Settings
from pyproxy.kubectl.command import Command
from pyproxy.kubectl.options import add_options, connect, options

_TIMEOUT = 60.0
_MOST_NODES = 10
_LIMIT = 50
"""Nodes with pods at most: 50 nodes make a million connections."""

_SETTLE = 10.0
_MOST_PARALLEL = 16


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image", default="", help="image of the test's pods (default the agents' own)")
    add(
        "--max-nodes",
        type=_parse_nodes,
        default=_MOST_NODES,
        metavar="N",
        help=f"number of nodes with pods, spread over all, 1 to {_LIMIT} (default {_MOST_NODES})",
    )
    add(
        "--settle",
        type=parse_seconds("--settle"),
        default=_SETTLE,
        metavar="SECONDS",
        help=f"time to program new Services, in which tests are repeated (default {_SETTLE:g})",
    )
    add("--keep", action="store_true", help="leave namespace, pods and Services for a closer look")
    add("--junit", default="", metavar="FILE", help="write a JUnit report to this file as well")
    add_output(parser)
    add_options(parser, timeout=_TIMEOUT)


def _run(namespace: argparse.Namespace, _: Sequence[str]) -> int:
    client, chosen = connect(namespace), options(namespace, _MOST_PARALLEL)
    agents = find_agents(client, chosen)
    settings = Settings(namespace.image, namespace.max_nodes, namespace.settle, namespace.keep)
    with interrupted_by(signal.SIGTERM, signal.SIGHUP):
        found = Check(client, agents, chosen, settings, _progress).run()
    report.show(found, lambda: show(found), namespace)
    if namespace.junit:
        _write(namespace.junit, junit(found))
    return 0 if found.ok else 1


def _parse_nodes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _LIMIT):
        raise UsageError(f"--max-nodes: {text!r} is not a number from 1 to {_LIMIT}")
    return int(text)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(file: str, data: bytes) -> None:
    try:
        Path(file).write_bytes(data)
    except OSError as error:
        raise UsageError(f"--junit {file}: {error.strerror}") from error


COMMAND = Command(
    _add_arguments,
    _run,
    ("0 all tests succeeded", "1 a test failed, or the namespace could not be removed"),
)
