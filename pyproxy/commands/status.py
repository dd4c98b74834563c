"""`pyproxy status`: how the agent on this node is."""

from __future__ import annotations

from collections.abc import Iterator

from pyproxy.commands.command import View
from pyproxy.commands.humanize import clock, count, duration
from pyproxy.commands.parts import BAD, DIM, GOOD, Part, Text, facts, table, text
from pyproxy.dataplane.interface import TableUsage
from pyproxy.inspect.query import Nothing
from pyproxy.inspect.status import STATUS, Status


def show(status: Status) -> Iterator[Part]:
    """Show a status as facts, and what is set aside as a table."""
    yield facts(
        [
            ("node", f"{status.node} (zone {status.zone})" if status.zone else status.node),
            ("mode", status.mode),
            ("health", text(status.health, GOOD if status.healthy else BAD)),
            ("running for", duration(status.now - status.started)),
            ("objects from", f"{status.source}, heard of {duration(status.source_age)} ago"),
            ("services", f"{status.services:,}"),
            ("endpoints", f"{status.endpoints:,} in {count(status.slices, 'slice')}"),
            ("last sync", _last_sync(status)),
            ("waiting", count(status.pending, "service") if status.pending else "nothing"),
            ("drift", _drift(status)),
            ("node ports on", ", ".join(status.node_port_addresses) or "no address"),
            ("pods are", ", ".join(status.pod_networks) or "not told by address"),
            ("tables", ", ".join(map(_fill, status.fill)) or text("not told", DIM)),
            ("set aside", _set_aside(status)),
        ]
    )
    if status.invalid:
        yield text("")
        yield table(
            ("SET ASIDE", "NAME", "FIELD", "REASON", "WHAT"),
            ((s.kind, s.name, s.field, s.reason, s.message) for s in status.invalid),
        )


def _last_sync(status: Status) -> str:
    last = status.last_sync
    if last is None:
        return "none yet"
    ago = duration(max(status.now - last.ended, 0.0))
    how = ", with the kernel read back" if last.whole else ""
    return (
        f"{ago} ago, took {duration(last.took)} for {count(last.services, 'service')}{how}; "
        f"{count(status.syncs, 'sync', 'syncs')} in all"
    )


def _fill(fill: TableUsage) -> str:
    limit = f" of {fill.limit:,}" if fill.limit else ""
    return f"{fill.name} {fill.held:,}{limit}"


def _set_aside(status: Status) -> Text:
    number = len({(each.kind, each.name) for each in status.invalid})
    return text(count(number, "object"), BAD) if number else text("nothing", GOOD)


def _drift(status: Status) -> Text:
    last = status.last_repair
    if last is None:
        return text("none seen", DIM)
    what = ", ".join(count(number, kind) for kind, number in last.counts.items())
    times = count(status.repairs, "repair")
    return text(f"{times}, the last at {clock(last.ended)}: {what} that {last.by} changed", BAD)


COMMAND = View(lambda asker, _: asker.ask(STATUS, Nothing()), show).command()
