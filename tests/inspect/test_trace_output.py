"""The output of `pyproxy trace` about connections that are offloaded later."""

from __future__ import annotations

import io
from fractions import Fraction

import pytest

from pyproxy.commands import printer
from pyproxy.commands.trace import show, trace_of
from pyproxy.dataplane.packets import (
    Delivered,
    Offload,
    Packet,
    TracePath,
    TraceResult,
    TraceStep,
    Untouched,
    Verdict,
)
from pyproxy.model.address import Port, Protocol, backend, parse_address

PACKET = Packet(
    parse_address("10.244.1.12"), parse_address("10.96.0.10"), Protocol.TCP, Port(80), "cbr0"
)
LATER = Offload(3, by="offload-services4 { 10.96.0.10 . tcp . 80 }")
DRAINING = Offload(
    reason="the endpoint terminates",
    by="draining-endpoints4 { 10.96.0.10 . tcp . 80 . 10.244.1.2 . 8080 }",
)


def to(number: int) -> Delivered:
    return Delivered(backend(parse_address(f"10.244.1.{number}"), Port(8080)))


def printed(*paths: tuple[Verdict, Offload | None]) -> list[str]:
    found = tuple(
        TracePath(verdict, Fraction(1, len(paths)), (TraceStep("services", "goes on"),), offload)
        for verdict, offload in paths
    )
    out = io.StringIO()
    printer.show(out, show(trace_of(TraceResult(PACKET, found))))
    return out.getvalue().splitlines()[2:]


TABLE_OF_TWO = [
    "  then one of 2 outcomes, at random:",
    "  PROBABILITY   OUTCOME",
    "  50.00%        delivered to 10.244.1.1:8080, source kept",
    "  50.00%        delivered to 10.244.1.2:8080, source kept",
    "  delivered to 10.244.1.1:8080, source kept:",
    "  delivered to 10.244.1.2:8080, source kept:",
]
LATER_LINES = [
    "the connection is offloaded after 3 packets of both directions together",
    "    offload-services4 { 10.96.0.10 . tcp . 80 }",
]


@pytest.mark.parametrize(
    ("paths", "lines"),
    [
        pytest.param(
            [(to(1), None)], ["delivered to 10.244.1.1:8080, source kept"], id="no fast path"
        ),
        pytest.param(
            [(to(1), LATER)],
            ["delivered to 10.244.1.1:8080, source kept", *LATER_LINES],
            id="one outcome",
        ),
        pytest.param(
            [(to(1), Offload(3, 2))],
            [
                "delivered to 10.244.1.1:8080, source kept",
                "the connection is offloaded after 3 packets of both directions together, and 2 s",
            ],
            id="UDP",
        ),
        pytest.param(
            [(to(1), LATER), (to(2), LATER)],
            [*TABLE_OF_TWO, *LATER_LINES],
            id="the same for all outcomes",
        ),
        pytest.param(
            [(to(1), LATER), (to(2), DRAINING)],
            [
                "  then one of 2 outcomes, at random:",
                "  PROBABILITY   OUTCOME                                     CONNECTION",
                "  50.00%        delivered to 10.244.1.1:8080, source kept   offloaded after 3 "
                "packets of both directions together",
                "  50.00%        delivered to 10.244.1.2:8080, source kept   not offloaded: the "
                "endpoint terminates",
                "  delivered to 10.244.1.1:8080, source kept:",
                *(f"  {line}" for line in LATER_LINES),
                "  delivered to 10.244.1.2:8080, source kept:",
                "  the connection is not offloaded: the endpoint terminates",
                "      draining-endpoints4 { 10.96.0.10 . tcp . 80 . 10.244.1.2 . 8080 }",
            ],
            id="another for one outcome",
        ),
        pytest.param(
            [(to(1), LATER), (Untouched(), None)],
            [
                "  then one of 2 outcomes, at random:",
                "  PROBABILITY   OUTCOME",
                "  50.00%        delivered to 10.244.1.1:8080, source kept",
                "  50.00%        destination unchanged, source kept",
                "  delivered to 10.244.1.1:8080, source kept:",
                "  destination unchanged, source kept:",
                *LATER_LINES,
            ],
            id="no connection to an endpoint",
        ),
    ],
)
def test_it_ends_with_what_becomes_of_the_connection(
    paths: list[tuple[Verdict, Offload | None]], lines: list[str]
) -> None:
    assert printed(*paths) == lines
