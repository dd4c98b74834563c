"""What an agent knows of one Service, in the model's own values: what `explain` judges."""

from __future__ import annotations

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.errors import Problem
from pyproxy.inspect.query import Query
from pyproxy.inspect.snapshot import AgentView, Snapshot
from pyproxy.inspect.status import health
from pyproxy.inspect.target import Resolved, resolve
from pyproxy.model.objects import EndpointSlice, Kind, Node, Service
from pyproxy.policy.routing import ServiceRouting


class Target(msgspec.Struct, frozen=True):
    """NAMESPACE/NAME or ADDRESS:PORT, the latter with /udp or /sctp where it is not TCP."""

    target: str


class Evidence(msgspec.Struct, frozen=True):
    """One Service as the agent knows it, and the agent itself; as JSON, addresses are base64.

    `service` is None where the agent knows none of that name, `answer` where none is programmed.
    `waiting` says that a sync is due.
    """

    settings: Settings
    healthy: bool
    health: str
    api_age: float
    waiting: bool
    node: Node | None
    node_routing: NodeRouting
    resolved: Resolved
    service: Service | None = None
    slices: tuple[EndpointSlice, ...] = ()
    routing: ServiceRouting | None = None
    problems: tuple[Problem, ...] = ()


def evidence(snapshot: Snapshot, target: Target) -> Evidence:
    """Gather what a snapshot says. Raises UsageError where the target is none."""
    resolved = resolve(snapshot, target.target)
    name = resolved.name
    found = Evidence(
        settings=snapshot.settings,
        healthy=snapshot.health.healthy and not snapshot.health.shutting_down,
        health=health(snapshot),
        api_age=snapshot.api_age,
        waiting=snapshot.pending > 0,
        node=snapshot.node,
        node_routing=snapshot.node_routing,
        resolved=resolved,
    )
    if name is None:
        return found
    slices = snapshot.slices_of(name)
    subjects = {(Kind.SERVICE.value, str(name))}
    subjects |= {(Kind.ENDPOINT_SLICE.value, str(each.name)) for each in slices}
    return msgspec.structs.replace(
        found,
        service=snapshot.services.get(name),
        slices=slices,
        routing=snapshot.routings.get(name),
        problems=tuple(p for p in snapshot.problems if (p.kind, p.name) in subjects),
    )


def _route(witness: AgentView, target: Target) -> Evidence:
    return evidence(witness.snapshot(), target)


EVIDENCE = Query("/evidence", Target, Evidence, _route)
