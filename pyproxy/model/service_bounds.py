"""The bounds of one Service, so that no Service makes all others wait long."""

from __future__ import annotations

import msgspec


class ServiceBounds(msgspec.Struct, frozen=True):
    """The most that is used of one Service.

    `frontends` are its addresses times its ports; a node port counts once in each family, whatever
    the number of the node's addresses. `endpoints` is the sum of the endpoints of all frontends,
    and `source_ranges` that of the source ranges of all load balancer frontends: the kernel holds
    a row for each in most proxy modes.

    The defaults are far above those of the largest known Services: 5,000 endpoints with three
    ports, a cluster IP, a node port and two load balancer addresses have 60,000 of `endpoints`.
    """

    frontends: int = 10_000
    endpoints: int = 200_000
    source_ranges: int = 50_000


DEFAULT_BOUNDS = ServiceBounds()
