"""`pyproxy status`: show the status of the agent on this node."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pyproxy.commands import slow_changes
from pyproxy.commands.command import View
from pyproxy.commands.output import BAD, DIM, GOOD, Part, Text, properties, table, text
from pyproxy.commands.query_runner import QueryRunner
from pyproxy.dataplane.interface import FlowOffloadState, TableUsage
from pyproxy.inspect.humanize import clock, count, duration
from pyproxy.inspect.queries import SLOW, STATUS, NoArgs
from pyproxy.inspect.slow_changes import SlowChanges
from pyproxy.inspect.status import Status


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slow",
        action="store_true",
        help="show the slowest changes of the last hour or two, and where their time went",
    )


def _fetch(queries: QueryRunner, namespace: argparse.Namespace) -> Status | SlowChanges:
    if namespace.slow:
        return queries.query_agent(SLOW, NoArgs())
    return queries.query(STATUS, NoArgs())


def _show(found: Status | SlowChanges) -> Iterator[Part]:
    return slow_changes.show(found) if isinstance(found, SlowChanges) else show(found)


def show(status: Status) -> Iterator[Part]:
    """Yield the status as properties, and the invalid objects as a table."""
    yield properties(
        [
            ("node", f"{status.node} (zone {status.zone})" if status.zone else status.node),
            ("mode", status.mode),
            ("health", text(status.health, GOOD if status.healthy else BAD)),
            ("uptime", duration(status.now - status.started)),
            ("source", f"{status.source}, oldest watch data {duration(status.source_age)} ago"),
            ("services", f"{status.services:,}"),
            ("endpoints", f"{status.endpoints:,} in {count(status.slices, 'slice')}"),
            ("last sync", _last_sync(status)),
            *([("sync error", text(status.sync_error, BAD))] if status.sync_error else []),
            ("pending", count(status.pending, "service") if status.pending else "none"),
            ("drift", _drift(status)),
            ("node port IPs", ", ".join(status.node_port_addresses) or "none"),
            ("pod networks", ", ".join(status.pod_networks) or "not configured"),
            ("tables", ", ".join(map(_usage, status.tables)) or text("unknown", DIM)),
            *([("flow offload", _flow_offload(state))] if (state := status.flow_offload) else []),
            ("invalid", _invalid(status)),
            ("config", _config(status)),
        ]
    )
    if status.config_problems:
        yield text("")
        yield table(
            ("CONFIG PROBLEM", "MESSAGE", "FIX"),
            ((each.topic.value, each.message, each.fix) for each in status.config_problems),
        )
    if status.invalid:
        yield text("")
        yield table(
            ("INVALID", "NAME", "FIELD", "REASON", "MESSAGE"),
            ((s.kind, s.name, s.field, s.reason, s.message) for s in status.invalid),
        )


def _last_sync(status: Status) -> str:
    last = status.last_sync
    if last is None:
        return "none yet"
    kind = "full" if last.full else "partial"
    ago = duration(max(status.now - last.ended, 0.0))
    return (
        f"{kind}, {ago} ago, took {duration(last.duration)} for {count(last.services, 'service')}; "
        f"{count(status.syncs, 'sync')} in total"
    )


def _usage(usage: TableUsage) -> str:
    limit = f" of {usage.limit:,}" if usage.limit else ""
    return f"{usage.name} {usage.used:,}{limit}"


def _flow_offload(state: FlowOffloadState) -> Text:
    if state.inactive:
        return text(f"not active: {state.inactive}", BAD)
    refused = "".join(f"; cannot bind {name}: {why}" for name, why in state.refused.items())
    return text(
        f"{count(state.added, 'connection')} offloaded so far, on "
        f"{', '.join(state.devices) or 'no interface'}{refused}",
        BAD if refused else GOOD,
    )


def _invalid(status: Status) -> Text:
    number = len({(each.kind, each.name) for each in status.invalid})
    return text(count(number, "object"), BAD) if number else text("none", GOOD)


def _config(status: Status) -> Text:
    number = len(status.config_problems)
    return text(count(number, "problem"), BAD) if number else text("no problem found", GOOD)


def _drift(status: Status) -> Text:
    last = status.last_repair
    if last is None:
        return text("none detected", DIM)
    objects = ", ".join(count(number, kind) for kind, number in last.counts.items())
    return text(
        f"{count(status.repairs, 'repair')}, the last at {clock(last.ended)}: {objects} changed by "
        f"{last.by or 'another program'}",
        BAD,
    )


COMMAND = View(_fetch, _show, _add_arguments).command()
