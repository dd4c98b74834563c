"""What the page shows, as HTML: values in, text out.

Whatever comes from the cluster is escaped by Jinja, everywhere and without exception.
"""

from __future__ import annotations

import time
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pyproxy.inspect.services import ServiceView, Which, services
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.inspect.status import status
from pyproxy.ui.picture import WIDTH, draw
from pyproxy.ui.search import Only, Query, search


def overview(snapshot: Snapshot, query: Query) -> str:
    """Show the node, and the Services that a query finds."""
    return _page("node.html").render(
        status=status(snapshot), query=query, found=search(snapshot, query), only=Only
    )


def service(snapshot: Snapshot, name: str) -> str:
    """Show one Service, by `NAMESPACE/NAME`. Raises UsageError where there is none of that name."""
    view: ServiceView = services(snapshot, Which(name)).services[0]
    return _page("service.html").render(
        status=status(snapshot),
        service=view,
        ports=[(port, draw(port)) for port in view.ports],
        width=WIDTH,
    )


def trouble(message: str) -> str:
    """Say why there is nothing to show."""
    return _page("trouble.html").render(message=message)


def _page(name: str) -> Template:
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pyproxy.ui"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clock"] = _clock
    environment.filters["span"] = _span
    return environment


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _span(seconds: float) -> str:
    """Write a duration with the unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.0f} h"
