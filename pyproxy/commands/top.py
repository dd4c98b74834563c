"""`pyproxy top`: new connections a second, by Service or by endpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import msgspec

from pyproxy.commands import output
from pyproxy.commands.arguments import add_output, output_of
from pyproxy.commands.command import Command
from pyproxy.commands.humanize import count, duration
from pyproxy.commands.parts import DIM, Part, table, text
from pyproxy.dataplane.nftables.counters import Counted, CounterReader, Totals
from pyproxy.errors import UsageError

_ROWS = 20
_SORTS = ("rate", "total", "name")
_MANY = 1000
"""Frontends beyond which reading all endpoints at once costs less than one by one."""


class Row(msgspec.Struct, frozen=True, rename="camel"):
    """One line: connections a second during the sample, and since the element was made."""

    service: str
    per_second: float
    total: int
    endpoint: str = ""


class Sample(msgspec.Struct, frozen=True, rename="camel"):
    """What `pyproxy top` shows at once.

    `seconds` is how long the sample took, `reading` how long the last reading of the kernel;
    `rows` are those shown, of `of` in all.
    """

    seconds: float
    reading: float
    per_second: float
    rows: tuple[Row, ...]
    of: int


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service",
        nargs="?",
        default="",
        metavar="NAMESPACE[/NAME]",
        help="count these Services alone",
    )
    parser.add_argument(
        "--endpoints",
        action="store_true",
        help="a line for each endpoint; without a Service all endpoints are read each time",
    )
    parser.add_argument("--sort", choices=_SORTS, default="rate", help="rate (default), or")
    parser.add_argument(
        "--rows", type=_whole, default=_ROWS, metavar="N", help=f"lines to show ({_ROWS}; 0: all)"
    )
    parser.add_argument(
        "--interval", type=_interval, default=2.0, metavar="SECONDS", help="a sample's length (2)"
    )
    ending = parser.add_mutually_exclusive_group()
    ending.add_argument("--once", action="store_true", help="show one sample, and end")
    ending.add_argument(
        "--iterations", type=_whole, default=0, metavar="N", help="show N samples, and end"
    )
    add_output(parser)


def _run(namespace: argparse.Namespace) -> int:
    encode = output_of(namespace)
    samples = _samples(namespace)
    if encode is not None:
        for sample in samples:
            print(encode(sample), flush=True)
        return 0
    with output.in_place(sys.stdout) as show:
        for sample in samples:
            show(_show(sample))
    return 0


def _samples(namespace: argparse.Namespace) -> Iterator[Sample]:
    times = 1 if namespace.once else namespace.iterations
    wanted = namespace.service
    if wanted and "/" not in wanted:
        wanted += "/"
    reader = CounterReader()
    try:
        reader.require()
        before, read_at, _ = _read(reader, wanted, namespace)
        done = 0
        while not times or done < times:
            time.sleep(namespace.interval)
            now, at, took = _read(reader, wanted, namespace)
            yield sample_of(before, now, at - read_at, took, namespace)
            before, read_at = now, at
            done += 1
    finally:
        reader.close()


def _read(
    reader: CounterReader, wanted: str, namespace: argparse.Namespace
) -> tuple[Totals, float, float]:
    began = time.monotonic()
    totals = reader.services(wanted)
    if namespace.endpoints:
        totals = reader.endpoints(totals, everything=len(totals.by_element) > _MANY)
    return totals, began, time.monotonic() - began


def sample_of(
    before: Totals, now: Totals, seconds: float, reading: float, namespace: argparse.Namespace
) -> Sample:
    """Compare two readings that are `seconds` apart, and keep the rows that are asked for."""
    gained, totals = now.since(before), now.since(None)
    keys = {
        "rate": lambda each: (-gained[each], -totals[each], each),
        "total": lambda each: (-totals[each], each),
        "name": lambda each: (each,),
    }
    owners: list[Counted] = sorted(gained, key=keys[namespace.sort])
    rows = (
        Row(each.service, gained[each] / seconds, totals[each], each.endpoint)
        for each in owners[: namespace.rows or None]
    )
    return Sample(seconds, reading, sum(gained.values()) / seconds, tuple(rows), len(owners))


def _show(sample: Sample) -> Iterator[Part]:
    by_endpoint = any(row.endpoint for row in sample.rows)
    what = "endpoint" if by_endpoint else "service"
    yield text(
        f"{sample.per_second:,.1f} new connections a second over {duration(sample.seconds)}, "
        f"{count(len(sample.rows), what)} of {sample.of:,}, read in {duration(sample.reading)}",
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


def _whole(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise UsageError(f"{value!r} is not a number from 0")
    return int(value)


def _interval(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise UsageError(f"--interval: {value!r} is not between 0.1 and 3600 seconds")
    return seconds


COMMAND = Command(_add_arguments, _run)
