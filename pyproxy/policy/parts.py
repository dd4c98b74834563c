"""Parts of a Service: each has one frontend, and is programmed as if it were a Service."""

from __future__ import annotations

import msgspec

from pyproxy.model.address import Family, Port
from pyproxy.model.objects import ObjectName
from pyproxy.policy.claims import key_of
from pyproxy.policy.routing import PortRouting, Scope, ServiceRouting, Use, with_frontends


class PartName(ObjectName, frozen=True, gc=False):
    """The name of the part of a Service that has one frontend; it prints as the Service's name.

    A part of a Service is programmed on its own, as if it were a Service.
    """

    frontend: bytes = b""

    @property
    def service(self) -> ObjectName:
        """The name of the Service."""
        return ObjectName(self.namespace, self.name)


def service_of(name: ObjectName) -> ObjectName:
    """Return the Service's name, given that name or the name of a part."""
    return name.service if isinstance(name, PartName) else name


def row_count(routing: ServiceRouting | None) -> int:
    """Return about the most rows that a dataplane has for a Service, in time linear in its ports.

    These are the rows of a mode that repeats the endpoints for each frontend.
    """
    if routing is None:
        return 0
    per_endpoint = 2 if routing.affinity_timeout else 1
    rows = 0
    for port in routing.ports:  # a loop, because a generator would be slower here
        endpoints = len(port.cluster) + len(port.local)
        rows += len(port.frontends) * (1 + per_endpoint * endpoints)
    if routing.source_ranges:
        balanced = sum(
            frontend.scope is Scope.LOAD_BALANCER
            for port in routing.ports
            for frontend in port.frontends
        )
        rows += balanced * len(routing.source_ranges)
    return rows


def parts(routing: ServiceRouting | None) -> dict[bytes, ServiceRouting]:
    """Divide a Service into parts with one frontend each, by the frontend's key."""
    found: dict[bytes, ServiceRouting] = {}
    if routing is None:
        return found
    namespace, name = routing.name.namespace, routing.name.name
    counts: dict[Family, int] = {}
    for port in routing.ports if routing.affinity_timeout else ():
        counts[port.family] = counts.get(port.family, 0) + len(port.frontends)
    for port in routing.ports:
        of_use: dict[Use, PortRouting] = {}
        # With one use, no endpoint is left out.
        if len({frontend.use.value for frontend in port.frontends}) == 1:
            of_use[port.frontends[0].use] = port
        for frontend in port.frontends:
            base = of_use.get(frontend.use)
            if base is None:
                # Made once, because it compares all endpoints.
                base = of_use[frontend.use] = with_frontends(port, (frontend,))
            key = key_of(port, frontend)
            found[key] = ServiceRouting(
                PartName(namespace, name, key),
                (msgspec.structs.replace(base, frontends=(frontend,)),),
                # A change of the ranges then changes no part that they do not concern.
                routing.source_ranges if frontend.scope is Scope.LOAD_BALANCER else (),
                routing.affinity_timeout,
                routing.scheduler,
                # Rounded, so that one frontend more changes no other part.
                1 << (count - 1).bit_length() if (count := counts.get(port.family)) else 0,
                routing.health_check_port if frontend.scope is Scope.LOAD_BALANCER else Port(0),
                routing.offload,
            )
    return found
