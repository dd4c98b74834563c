"""What the API server says of a Service and its pods, asked by whoever has a client for it."""

from __future__ import annotations

import msgspec

from pyproxy.inspect.query import Query
from pyproxy.inspect.services import object_name
from pyproxy.inspect.snapshot import AgentView
from pyproxy.source.api_objects import ServiceLookup


class Named(msgspec.Struct, frozen=True):
    """NAMESPACE/NAME."""

    name: str


def _route(witness: AgentView, question: Named) -> ServiceLookup:
    return witness.look_up(object_name(question.name))


LOOKUP = Query("/lookup", Named, ServiceLookup, _route)
