"""`pyproxy top`: show new connections per second by Service or endpoint, or offloaded flows."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import TypeVar

import msgspec

from pyproxy.commands import printer
from pyproxy.commands.arguments import add_output, add_source, encoder, parse_count, parse_seconds
from pyproxy.commands.command import Command
from pyproxy.commands.output import DIM, Part, table, text
from pyproxy.commands.query_runner import QueryRunner
from pyproxy.config.settings import Settings
from pyproxy.dataplane import modes
from pyproxy.dataplane.connections import ConnectionCounters, Counted, Totals
from pyproxy.inspect.humanize import count, duration

_ROWS = 20
_SORTS = ("rate", "total", "name")
_DUMP_ABOVE = 1000
"""Frontends above which one dump of all endpoints costs less than a request for each."""

S = TypeVar("S", bound=msgspec.Struct)


class Row(msgspec.Struct, frozen=True, rename="camel"):
    """Connections of one Service or endpoint: per second in the sample, and since it was added."""

    service: str
    per_second: float
    total: int
    endpoint: str = ""


class Sample(msgspec.Struct, frozen=True, rename="camel"):
    """One sample.

    `seconds` is its length, `read_seconds` the time that reading the kernel took, `per_second` the
    rate of all rows. `rows` has those shown, of `total_rows`.
    """

    seconds: float
    read_seconds: float
    per_second: float
    rows: tuple[Row, ...]
    total_rows: int


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service",
        nargs="?",
        default="",
        metavar="NAMESPACE[/NAME]",
        help="show one namespace or one Service",
    )
    parser.add_argument(
        "--endpoints",
        action="store_true",
        help="show each endpoint; without a Service this reads all endpoints for each sample",
    )
    parser.add_argument(
        "--offloaded",
        action="store_true",
        help="show the connections on the fast path of --flow-offload, with packets and bytes",
    )
    parser.add_argument("--sort", choices=_SORTS, default="rate", help="sort key (default rate)")
    parser.add_argument(
        "--rows",
        type=parse_count("--rows"),
        default=_ROWS,
        metavar="N",
        help=f"number of rows (default {_ROWS}, 0 for all)",
    )
    parser.add_argument(
        "--interval",
        type=parse_seconds("--interval"),
        default=2.0,
        metavar="SECONDS",
        help="length of a sample (default 2)",
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--once", action="store_true", help="stop after one sample")
    limit.add_argument(
        "--iterations",
        type=parse_count("--iterations"),
        default=0,
        metavar="N",
        help="stop after N samples",
    )
    add_output(parser)
    add_source(parser)


def _run(namespace: argparse.Namespace) -> int:
    selected = namespace.service
    # The form in which ConnectionCounters expects a namespace.
    if selected and "/" not in selected:
        selected += "/"
    settings = QueryRunner(namespace).agent_settings()
    if namespace.offloaded:
        # Imports conntrack, which the other form does without.
        from pyproxy.commands import top_offloaded  # noqa: PLC0415

        flows = top_offloaded.samples(settings, selected, namespace)
        return _print(flows, top_offloaded.show, namespace)
    return _print(_samples(settings, selected, namespace), _show, namespace)


def _print(
    samples: Generator[S, None, None],
    show: Callable[[S], Iterable[Part]],
    namespace: argparse.Namespace,
) -> int:
    """Print as many samples as the command line asks for."""
    encode = encoder(namespace)
    with closing(samples):
        limited = islice(samples, 1 if namespace.once else namespace.iterations or None)
        if encode is not None:
            for sample in limited:
                print(encode(sample), flush=True)
            return 0
        with printer.refreshing(sys.stdout) as draw:
            for sample in limited:
                draw(show(sample))
    return 0


def _samples(
    settings: Settings, selected: str, namespace: argparse.Namespace
) -> Generator[Sample, None, None]:
    reader = modes.of(settings.mode).counters(settings)
    try:
        reader.require()
        before, read_at, _ = _read(reader, selected, namespace)
        while True:
            time.sleep(namespace.interval)
            now, at, took = _read(reader, selected, namespace)
            yield sample_of(before, now, at - read_at, took, namespace)
            before, read_at = now, at
    finally:
        reader.close()


def _read(
    reader: ConnectionCounters, selected: str, namespace: argparse.Namespace
) -> tuple[Totals, float, float]:
    began = time.monotonic()
    totals = reader.services(selected)
    if namespace.endpoints:
        totals = reader.endpoints(totals, everything=len(totals.by_element) > _DUMP_ABOVE)
    # Both readings count from their beginning, so the length of a read does not change the rate.
    return totals, began, time.monotonic() - began


def sample_of(
    before: Totals, now: Totals, seconds: float, read_seconds: float, namespace: argparse.Namespace
) -> Sample:
    """Return the difference of two readings `seconds` apart, with the rows that are shown."""
    gained, totals = now.since(before), now.since(None)
    keys = {
        "rate": lambda each: (-gained[each], -totals[each], each),
        "total": lambda each: (-totals[each], each),
        "name": lambda each: (each,),
    }
    # Ties are sorted by name, so that rows keep their places between samples.
    owners: list[Counted] = sorted(gained, key=keys[namespace.sort])
    rows = (
        Row(each.service, gained[each] / seconds, totals[each], each.endpoint)
        for each in owners[: namespace.rows or None]
    )
    return Sample(seconds, read_seconds, sum(gained.values()) / seconds, tuple(rows), len(owners))


def _show(sample: Sample) -> Iterator[Part]:
    by_endpoint = any(row.endpoint for row in sample.rows)
    noun = "endpoint" if by_endpoint else "service"
    yield text(
        f"{sample.per_second:,.1f} new connections per second over {duration(sample.seconds)}; "
        f"showing {len(sample.rows):,} of {count(sample.total_rows, noun)}; "
        f"read in {duration(sample.read_seconds)}",
        DIM,
    )
    columns = ("SERVICE", "ENDPOINT")[: 1 + by_endpoint]
    yield table(
        (*columns, "PER SECOND", "TOTAL"),
        (
            (
                *((row.service, row.endpoint)[: 1 + by_endpoint]),
                f"{row.per_second:,.1f}",
                f"{row.total:,}",
            )
            for row in sample.rows
        ),
    )


COMMAND = Command(_add_arguments, _run)
