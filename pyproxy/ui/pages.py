"""The page's HTML: snapshots in, text out.

Jinja escapes every value, because names and labels come from the cluster's users.
"""

from __future__ import annotations

from functools import cache
from itertools import islice

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pyproxy.inspect.humanize import clock, duration
from pyproxy.inspect.listing import Listing
from pyproxy.inspect.services import ServiceView, list_services
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.inspect.status import status
from pyproxy.ui.diagram import WIDTH, draw
from pyproxy.ui.search import Filter, SearchQuery, search

MAX_ROWS = 200
"""Rows of a table; the commands print all."""

MAX_PORTS = 20
"""Ports on the page of a Service."""


_CLASSES = {
    "ok": "good",
    "failed": "bad",
    "note": "warn",
    "skipped": "unused",
    "undecided": "warn",
}
"""The style of a step's result; its module would import all steps."""


def overview(snapshot: Snapshot, query: SearchQuery) -> str:
    """Return the page of the node, with the Services that match a query."""
    return _page("node.html").render(
        status=status(snapshot, limit=MAX_ROWS),
        problems=len(snapshot.problems),
        query=query,
        found=search(snapshot, query),
        filters=Filter,
    )


def service(snapshot: Snapshot, name: str) -> str:
    """Return the page of one Service (NAMESPACE/NAME). Raises UsageError if it is not served.

    Of a large Service it has `MAX_PORTS` ports and `MAX_ROWS` rows in each table.
    """
    view: Listing[ServiceView] = next(list_services(snapshot, name).fields["services"])
    ports = list(islice(view.fields["ports"], MAX_PORTS))
    return _page("service.html").render(
        status=status(snapshot, limit=0),
        service=view.head,
        ports=[(port, draw(port)) for port in ports],
        more_ports=any(True for _ in view.fields["ports"]),
        unmatched=list(islice(view.fields["unmatched"], MAX_ROWS)),
        more_unmatched=any(True for _ in view.fields["unmatched"]),
        rows=MAX_ROWS,
        width=WIDTH,
    )


def explanation(snapshot: Snapshot, name: str) -> str:
    """Return the page with the steps of `pyproxy explain` for a Service. Raises UsageError.

    Reads the kernel in the caller's thread.
    """
    # The readers of routes and of other firewalls are needed for this page alone.
    from pyproxy.inspect.agent_explanation import explain_in_agent  # noqa: PLC0415

    return _page("explain.html").render(
        status=status(snapshot, limit=0),
        found=explain_in_agent(snapshot, name),
        classes=_CLASSES,
        rows=MAX_ROWS,
    )


def error(message: str) -> str:
    """Return an error page."""
    return _page("error.html").render(message=message)


def _page(name: str) -> Template:
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pyproxy.ui"),
        autoescape=True,
        # A misspelt name in a template raises instead of rendering as empty text.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clock"] = clock
    environment.filters["duration"] = duration
    return environment
