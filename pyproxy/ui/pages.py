"""The page's HTML: snapshots in, text out.

Jinja escapes every value, because names and labels come from the cluster's users.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pyproxy.inspect.humanize import clock, duration
from pyproxy.inspect.services import ServiceView, services
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.inspect.status import status
from pyproxy.ui.diagram import WIDTH, draw
from pyproxy.ui.search import Filter, SearchQuery, search


def overview(snapshot: Snapshot, query: SearchQuery) -> str:
    """Return the page of the node, with the Services that match a query."""
    return _page("node.html").render(
        status=status(snapshot), query=query, found=search(snapshot, query), filters=Filter
    )


def service(snapshot: Snapshot, name: str) -> str:
    """Return the page of one Service (NAMESPACE/NAME). Raises UsageError if it is not served."""
    view: ServiceView = services(snapshot, name).services[0]
    return _page("service.html").render(
        status=status(snapshot),
        service=view,
        ports=[(port, draw(port)) for port in view.ports],
        width=WIDTH,
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
