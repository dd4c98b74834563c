"""The kernel's routes of the packets of a Service."""

from __future__ import annotations

import msgspec

from pyproxy.hostnet.not_read import NotRead
from pyproxy.hostnet.packet import ServicePaths


class RouteFacts(msgspec.Struct, frozen=True):
    """The paths with their devices, and the route of each packet."""

    paths: ServicePaths = ServicePaths()


def read_routes(paths: ServicePaths) -> RouteFacts | NotRead:  # noqa: ARG001
    """Look up the routes of paths. Blocks for a request each. Raises KernelError."""
    return NotRead("this version does not look up routes")
