"""The counts per node, and the arithmetic for fleets of other sizes."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import msgspec

from pyproxy_lab.bench.fleet.counts import Counts
from pyproxy_lab.bench.fleet.fleets import Client
from pyproxy_lab.bench.fleet.scenarios import WORDS, Plan, Scenario
from pyproxy_lab.bench.report import machine

FLEETS = (1_000, 5_000, 15_000)
"""Nodes of the fleets that figures are extrapolated to."""

Results = Mapping[Client, Mapping[Scenario, Counts]]


class PerNode(msgspec.Struct, frozen=True, rename="camel"):
    """Figures of one scenario: of each node, or, for changes, of the whole fleet.

    A kube-apiserver encodes a change once for all watches, so `shared_encodings` do not grow with
    the fleet. The others do.
    """

    bytes_received: float
    bytes_sent: float
    requests: float
    lists: float
    own_encodings: float
    shared_encodings: int


def per_node(counts: Counts, nodes: int) -> PerNode:
    """Divide the counts of a fleet by its size."""
    shared = {key: n for key, n in counts.encodings.items() if key.endswith(" change")}
    return PerNode(
        counts.received / nodes,
        counts.sent / nodes,
        counts.all_requests / nodes,
        counts.lists / nodes,
        (counts.encoded - sum(shared.values())) / nodes,
        sum(shared.values()),
    )


def as_text(plan: Plan, results: Results) -> str:
    """Write the counts and the arithmetic, in Markdown."""
    size, nodes = plan.size, plan.nodes
    lines = [f"{nodes} nodes, {size}; {machine()}", ""]
    for scenario in Scenario:
        found = {client: per[scenario] for client, per in results.items() if scenario in per}
        if not found:
            continue
        lines += [f"## {scenario.value}: {WORDS[scenario]}", ""]
        lines += _table(found, nodes)
        lines += ["", *_arithmetic(scenario, found, nodes), ""]
    return "\n".join(lines)


def _table(found: Mapping[Client, Counts], nodes: int) -> list[str]:
    rows = {client: per_node(counts, nodes) for client, counts in found.items()}
    return [
        "| of a node | received | sent | requests | of these lists | encodings for it "
        "| encodings for all nodes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {client.value} | {amount(row.bytes_received)} | {amount(row.bytes_sent)} "
            f"| {row.requests:.1f} | {row.lists:.1f} | {row.own_encodings:,.1f} "
            f"| {row.shared_encodings:,} |"
            for client, row in rows.items()
        ),
    ]


def _arithmetic(scenario: Scenario, found: Mapping[Client, Counts], nodes: int) -> list[str]:
    lines = [f"counted with {nodes} nodes; a fleet of n nodes:"]
    for client, counts in found.items():
        row = per_node(counts, nodes)
        total = row.bytes_received + row.bytes_sent
        for fleet in FLEETS:
            shared = row.shared_encodings * _shares(scenario, fleet, nodes)
            encodings = row.own_encodings * fleet + shared
            lines.append(
                f"    {client.value}, {fleet:,} nodes: "
                f"{amount(total)} x {fleet:,} = {amount(total * fleet)}; "
                f"{row.requests:.1f} x {fleet:,} = {row.requests * fleet:,.0f} requests; "
                f"{encodings:,.0f} encodings"
            )
    return lines


def _shares(scenario: Scenario, fleet: int, nodes: int) -> float:
    """Return how much more changes a fleet has: each Node has changes of its own in an hour."""
    return fleet / nodes if scenario is Scenario.HOUR else 1.0


def as_json(plan: Plan, results: Results) -> bytes:
    """Write the counts, the figures of a node and those of larger fleets."""
    clients: dict[str, object] = {}
    for client, per_scenario in results.items():
        scenarios: dict[str, object] = {}
        for scenario, counts in per_scenario.items():
            row = per_node(counts, plan.nodes)
            total = row.bytes_received + row.bytes_sent
            scenarios[scenario.value] = {
                "counts": counts,
                "node": row,
                "fleets": {
                    str(fleet): {
                        "bytes": total * fleet,
                        "requests": row.requests * fleet,
                        "encodings": row.own_encodings * fleet
                        + row.shared_encodings * _shares(scenario, fleet, plan.nodes),
                    }
                    for fleet in FLEETS
                },
            }
        clients[client.value] = scenarios
    document = {
        "plan": plan,
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "clients": clients,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def amount(size: float) -> str:
    """Write bytes with three digits, in decimal units as networks have them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 999.5 * factor:
            return f"{size / factor:,.0f} {unit}"
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
