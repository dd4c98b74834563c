"""`kubectl pyproxy top --offloaded`: flows on the fast path by Service, summed over all nodes."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pyproxy.commands.output import DIM, Part, table, text
from pyproxy.errors import one_line
from pyproxy.inspect.humanize import count, duration

_LONGEST_TEXT = 700
_LARGEST = 1e18


class _Row(msgspec.Struct, frozen=True, rename="camel"):
    service: str = ""
    flows: int = 0
    packets_per_second: float = 0.0
    bytes_per_second: float = 0.0
    packets: int = 0
    bytes: int = 0


class NodeSample(msgspec.Struct, frozen=True, rename="camel"):
    """The fields of a node's answer that are used."""

    rows: tuple[_Row, ...] = ()


class OffloadedRow(msgspec.Struct, frozen=True, rename="camel"):
    """The flows of one Service on all nodes; `busiest` is the node with most bytes now."""

    service: str
    flows: int
    packets_per_second: float
    bytes_per_second: float
    packets: int
    bytes: int
    nodes: int
    busiest: str


class ClusterOffloaded(msgspec.Struct, frozen=True, rename="camel"):
    """One sample of each node; the nodes are not read at the same moment.

    `rows` has those shown, of `total_rows`; `failures` are reasons by node.
    """

    nodes: int
    flows: int
    packets_per_second: float
    bytes_per_second: float
    rows: tuple[OffloadedRow, ...]
    total_rows: int
    failures: dict[str, str]


class _Sum:
    """The flows of one Service so far."""

    def __init__(self) -> None:
        self.flows = self.packets = self.bytes = 0.0
        self.packets_per_second = self.bytes_per_second = 0.0
        self.nodes = 0
        self.busiest = ("", -1.0)

    def add(self, node: str, row: _Row) -> None:
        self.flows += _bounded(row.flows)
        self.packets += _bounded(row.packets)
        self.bytes += _bounded(row.bytes)
        self.packets_per_second += _bounded(row.packets_per_second)
        rate = _bounded(row.bytes_per_second)
        self.bytes_per_second += rate
        self.nodes += 1
        if rate > self.busiest[1]:
            self.busiest = node, rate

    def row(self, service: str) -> OffloadedRow:
        return OffloadedRow(
            service,
            int(self.flows),
            self.packets_per_second,
            self.bytes_per_second,
            int(self.packets),
            int(self.bytes),
            self.nodes,
            self.busiest[0],
        )


def _bounded(number: float) -> float:
    # A node may answer any number, and a sum must stay finite.
    return min(max(number, 0), _LARGEST)


def cluster_offloaded(
    answers: Iterator[tuple[str, NodeSample | str]], sort: str, rows: int
) -> ClusterOffloaded:
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
        "rate": lambda row: (-row.bytes_per_second, -row.bytes, row.service),
        "total": lambda row: (-row.bytes, row.service),
        "name": lambda row: (row.service,),
    }
    found = sorted((each.row(service) for service, each in sums.items()), key=keys[sort])
    return ClusterOffloaded(
        nodes,
        sum(each.flows for each in found),
        sum(each.packets_per_second for each in found),
        sum(each.bytes_per_second for each in found),
        tuple(found[: rows or None]),
        len(found),
        failures,
    )


def show_offloaded(sample: ClusterOffloaded, interval: float) -> Iterator[Part]:
    """Yield the sums, and a row for each Service."""
    answered = sample.nodes - len(sample.failures)
    yield text(
        f"{count(sample.flows, 'offloaded flow')} on {count(answered, 'node')}; "
        f"{sample.packets_per_second:,.1f} packets and {sample.bytes_per_second:,.0f} bytes per "
        f"second, each over {duration(interval)}; showing {len(sample.rows):,} of "
        f"{count(sample.total_rows, 'service')}",
        DIM,
    )
    yield table(
        ("SERVICE", "FLOWS", "PACKETS/S", "BYTES/S", "PACKETS", "BYTES", "NODES", "BUSIEST"),
        (
            (
                row.service,
                f"{row.flows:,}",
                f"{row.packets_per_second:,.1f}",
                f"{row.bytes_per_second:,.0f}",
                f"{row.packets:,}",
                f"{row.bytes:,}",
                f"{row.nodes:,}",
                row.busiest,
            )
            for row in sample.rows
        ),
    )
