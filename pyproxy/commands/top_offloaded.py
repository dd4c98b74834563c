"""`pyproxy top --offloaded`: the flows on the fast path, with packets and bytes per second."""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator, Iterator

import msgspec

from pyproxy.commands.output import DIM, Part, table, text
from pyproxy.config import flags
from pyproxy.config.settings import FlowOffload, Settings
from pyproxy.dataplane.connections import Counted
from pyproxy.dataplane.nftables.offloaded_flows import Load, Loads, OffloadedFlowReader
from pyproxy.errors import UsageError
from pyproxy.inspect.humanize import count, duration


class OffloadedRow(msgspec.Struct, frozen=True, rename="camel"):
    """The present flows of one Service or endpoint, in both directions.

    Rates are those in the sample. `packets` and `bytes` are those since each connection began.
    """

    service: str
    flows: int
    packets_per_second: float
    bytes_per_second: float
    packets: int
    bytes: int
    endpoint: str = ""


class OffloadedSample(msgspec.Struct, frozen=True, rename="camel"):
    """One sample: `flows` and the rates are those of all rows, `rows` those shown of `total_rows`.

    `seconds` is its length, `read_seconds` the time that reading the kernel took. `unmeasured` is
    the number of flows that were not read before, and are in no rate.
    """

    seconds: float
    read_seconds: float
    flows: int
    unmeasured: int
    packets_per_second: float
    bytes_per_second: float
    rows: tuple[OffloadedRow, ...]
    total_rows: int


def require(settings: Settings) -> None:
    """Raise UsageError unless an agent with these settings offloads flows."""
    flag = flags.FLOW_OFFLOAD
    if settings.mode not in flag.modes:
        modes = ", ".join(sorted(each.value for each in flag.modes))
        raise UsageError(
            f"--offloaded: proxy mode {settings.mode.value} has no fast path: start the agent with "
            f"--proxy-mode={modes} and {flag.name}={FlowOffload.SERVICES.value}"
        )
    if settings.nftables.flow_offload is FlowOffload.NONE:
        raise UsageError(
            "--offloaded: the agent offloads no connections: start it with "
            f"{flag.name}={FlowOffload.SERVICES.value}"
        )


def samples(
    settings: Settings, selected: str, namespace: argparse.Namespace
) -> Generator[OffloadedSample, None, None]:
    """Yield a sample each interval, without end. Raises PyproxyError."""
    require(settings)
    reader = OffloadedFlowReader()
    try:
        reader.require()
        began = time.monotonic()
        reader.read(selected, by_endpoint=namespace.endpoints)
        while True:
            time.sleep(namespace.interval)
            now = time.monotonic()
            loads = reader.read(selected, by_endpoint=namespace.endpoints)
            # Both readings count from their beginning, so a read's length does not change rates.
            yield sample_of(loads, now - began, time.monotonic() - now, namespace)
            began = now
    finally:
        reader.close()


def sample_of(
    loads: Loads, seconds: float, read_seconds: float, namespace: argparse.Namespace
) -> OffloadedSample:
    """Return a sample of a reading `seconds` after the one before, with the rows that are shown."""
    keys = {
        "rate": lambda row: (-row.bytes_per_second, -row.bytes, row.service, row.endpoint),
        "total": lambda row: (-row.bytes, row.service, row.endpoint),
        "name": lambda row: (row.service, row.endpoint),
    }
    rows = sorted(
        (_row(owner, load, seconds) for owner, load in loads.by_owner.items()),
        key=keys[namespace.sort],
    )
    return OffloadedSample(
        seconds,
        read_seconds,
        sum(row.flows for row in rows),
        loads.unmeasured,
        sum(row.packets_per_second for row in rows),
        sum(row.bytes_per_second for row in rows),
        tuple(rows[: namespace.rows or None]),
        len(rows),
    )


def _row(owner: Counted, load: Load, seconds: float) -> OffloadedRow:
    return OffloadedRow(
        owner.service,
        load.flows,
        load.recent_packets / seconds,
        load.recent_bytes / seconds,
        load.packets,
        load.bytes,
        owner.endpoint,
    )


def show(sample: OffloadedSample) -> Iterator[Part]:
    """Yield the sums, and a row for each Service or endpoint."""
    by_endpoint = any(row.endpoint for row in sample.rows)
    noun = "endpoint" if by_endpoint else "service"
    fresh = f" ({sample.unmeasured:,} not measured yet)" if sample.unmeasured else ""
    yield text(
        f"{count(sample.flows, 'offloaded flow')}{fresh}; "
        f"{sample.packets_per_second:,.1f} packets and {sample.bytes_per_second:,.0f} bytes per "
        f"second over {duration(sample.seconds)}; showing {len(sample.rows):,} of "
        f"{count(sample.total_rows, noun)}; read in {duration(sample.read_seconds)}",
        DIM,
    )
    columns = ("SERVICE", "ENDPOINT")[: 1 + by_endpoint]
    yield table(
        (*columns, "FLOWS", "PACKETS/S", "BYTES/S", "PACKETS", "BYTES"),
        (
            (
                *((row.service, row.endpoint)[: 1 + by_endpoint]),
                f"{row.flows:,}",
                f"{row.packets_per_second:,.1f}",
                f"{row.bytes_per_second:,.0f}",
                f"{row.packets:,}",
                f"{row.bytes:,}",
            )
            for row in sample.rows
        ),
    )
