"""Every question that the socket answers."""

from __future__ import annotations

from typing import Any

from pyproxy.inspect.desired import DESIRED
from pyproxy.inspect.evidence import EVIDENCE
from pyproxy.inspect.lookup import LOOKUP
from pyproxy.inspect.query import Query, Stream
from pyproxy.inspect.services import SERVICES
from pyproxy.inspect.status import STATUS
from pyproxy.inspect.watch import WATCH

ENDPOINTS: tuple[Query[Any, Any] | Stream[Any, Any], ...] = (
    STATUS,
    SERVICES,
    DESIRED,
    EVIDENCE,
    LOOKUP,
    WATCH,
)

BY_PATH = {endpoint.path: endpoint for endpoint in ENDPOINTS}
