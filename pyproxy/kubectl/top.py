"""`kubectl pyproxy top`: new connections per second by Service, summed over all nodes.

With `--offloaded` it sums the flows on the fast path instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

import msgspec

from pyproxy.commands import printer
from pyproxy.commands.arguments import add_output, encoder, parse_count, parse_seconds
from pyproxy.commands.output import BAD, DIM, Part, table, text
from pyproxy.errors import one_line
from pyproxy.inspect.humanize import count, duration
from pyproxy.kubectl import report
from pyproxy.kubectl.agents import Agent, find_agents
from pyproxy.kubectl.ask import Question, decoder, read
from pyproxy.kubectl.command import Command
from pyproxy.kubectl.fan_out import ask_all
from pyproxy.kubectl.options import Options, add_options, connect, options
from pyproxy.kubectl.top_offloaded import (
    ClusterOffloaded,
    NodeSample,
    cluster_offloaded,
    show_offloaded,
)
from pyproxy.source.client import Client

S = TypeVar("S", bound=msgspec.Struct)

_ROWS = 20
_SORTS = ("rate", "total", "name")
_TIMEOUT = 15.0
_LONGEST_TEXT = 700
_LARGEST = 1e15


class _Row(msgspec.Struct, frozen=True, rename="camel"):
    service: str = ""
    per_second: float = 0.0
    total: int = 0


class _Sample(msgspec.Struct, frozen=True, rename="camel"):
    rows: tuple[_Row, ...] = ()


class Row(msgspec.Struct, frozen=True, rename="camel"):
    """Connections of one Service on all nodes; `busiest` is the node with most of them now."""

    service: str
    per_second: float
    total: int
    nodes: int
    busiest: str
    busiest_per_second: float


class ClusterSample(msgspec.Struct, frozen=True, rename="camel"):
    """One sample of each node; the nodes are not read at the same moment.

    `rows` has those shown, of `total_rows`; `failures` are reasons by node.
    """

    nodes: int
    per_second: float
    rows: tuple[Row, ...]
    total_rows: int
    failures: dict[str, str]


class _Sum:
    """The connections of one Service so far."""

    def __init__(self) -> None:
        self.per_second = 0.0
        self.total = 0.0
        self.nodes = 0
        self.busiest = ("", 0.0)

    def add(self, node: str, row: _Row) -> None:
        rate = min(max(row.per_second, 0.0), _LARGEST)
        self.per_second += rate
        self.total += min(max(row.total, 0), _LARGEST)
        self.nodes += rate > 0
        if rate > self.busiest[1]:
            self.busiest = node, rate

    def row(self, service: str) -> Row:
        return Row(service, self.per_second, int(self.total), self.nodes, *self.busiest)


def cluster_sample(
    answers: Iterator[tuple[str, _Sample | str]], sort: str, rows: int
) -> ClusterSample:
    """Sum the samples of all nodes."""
    sums: dict[str, _Sum] = {}
    failures: dict[str, str] = {}
    nodes = 0
    for node, answer in answers:
        nodes += 1
        if isinstance(answer, str):
            failures[node] = answer
            continue
        for row in answer.rows:
            sums.setdefault(one_line(row.service, _LONGEST_TEXT), _Sum()).add(node, row)
    keys = {
        "rate": lambda row: (-row.per_second, -row.total, row.service),
        "total": lambda row: (-row.total, row.service),
        "name": lambda row: (row.service,),
    }
    found = sorted((each.row(service) for service, each in sums.items()), key=keys[sort])
    rate = sum(each.per_second for each in found)
    return ClusterSample(nodes, rate, tuple(found[: rows or None]), len(found), failures)


def show(sample: ClusterSample, interval: float) -> Iterator[Part]:
    """Yield the sum, and a row for each Service."""
    answered = sample.nodes - len(sample.failures)
    yield text(
        f"{sample.per_second:,.1f} new connections per second on {count(answered, 'node')}, each "
        f"over {duration(interval)}; showing {len(sample.rows):,} of "
        f"{count(sample.total_rows, 'service')}",
        DIM,
    )
    yield table(
        ("SERVICE", "PER SECOND", "TOTAL", "NODES", "BUSIEST"),
        (
            (
                row.service,
                f"{row.per_second:,.1f}",
                f"{row.total:,}",
                f"{row.nodes:,}",
                f"{row.busiest} {row.busiest_per_second:,.1f}" if row.busiest else "",
            )
            for row in sample.rows
        ),
    )


def _failures(failures: dict[str, str]) -> Iterator[Part]:
    """Yield a line about the nodes that gave no answer, with the reason of the first."""
    if failures:
        node, reason = next(iter(failures.items()))
        yield text(f"{count(len(failures), 'node')} gave no answer; {node}: {reason}", BAD)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "service", nargs="?", default="", metavar="NAMESPACE[/NAME]",
        help="show one namespace or one Service",
    )  # fmt: skip
    add(
        "--offloaded",
        action="store_true",
        help="show the connections on the fast path of --flow-offload, with packets and bytes",
    )
    add("--sort", choices=_SORTS, default="rate", help="sort key (default rate)")
    add(
        "--rows",
        type=parse_count("--rows"),
        default=_ROWS,
        metavar="N",
        help=f"number of rows (default {_ROWS}, 0 for all)",
    )
    add(
        "--interval",
        type=parse_seconds("--interval"),
        default=2.0,
        metavar="SECONDS",
        help="length of a node's sample (default 2)",
    )
    add("--once", action="store_true", help="stop after one sample")
    add_output(parser)
    add_options(parser, timeout=_TIMEOUT)


def _run(namespace: argparse.Namespace, _: Sequence[str]) -> int:
    client, chosen = connect(namespace), options(namespace)
    # The sample is part of the wait for a node.
    chosen = msgspec.structs.replace(chosen, timeout=chosen.timeout + namespace.interval)
    agents = find_agents(client, chosen)

    def sample() -> tuple[ClusterSample | ClusterOffloaded, Iterator[Part]]:
        return _sample(client, agents, namespace, chosen)

    if encoder(namespace) is not None or namespace.once:
        while True:
            found, parts = sample()
            report.show(found, lambda: parts, namespace)  # noqa: B023
            if namespace.once:
                return 1 if found.failures else 0
    with printer.refreshing(sys.stdout) as draw:
        while True:
            draw(sample()[1])


def _sample(
    client: Client, agents: Sequence[Agent], namespace: argparse.Namespace, chosen: Options
) -> tuple[ClusterSample | ClusterOffloaded, Iterator[Part]]:
    """Return a sample of all nodes, and its form on a terminal."""
    interval = namespace.interval
    if namespace.offloaded:
        flows = cluster_offloaded(
            _ask(client, agents, namespace, chosen, NodeSample), namespace.sort, namespace.rows
        )
        return flows, chain(show_offloaded(flows, interval), _failures(flows.failures))
    found = cluster_sample(
        _ask(client, agents, namespace, chosen, _Sample), namespace.sort, namespace.rows
    )
    return found, chain(show(found, interval), _failures(found.failures))


def _ask(
    client: Client,
    agents: Sequence[Agent],
    namespace: argparse.Namespace,
    chosen: Options,
    kind: type[S],
) -> Iterator[tuple[str, S | str]]:
    """Yield each node with its sample, or with the reason why there is none."""
    words = ("top", "--once", "--rows", "0", "--interval", f"{namespace.interval:g}")
    offloaded = ("--offloaded",) if namespace.offloaded else ()
    selected = (namespace.service,) if namespace.service else ()
    question = Question((*words, *offloaded, *selected))
    decode = decoder(kind)
    for answer in ask_all(client, agents, question, chosen):
        yield answer.node, read(answer, question, decode)


COMMAND = Command(_add_arguments, _run, ("0 success", "1 a node did not answer"))
