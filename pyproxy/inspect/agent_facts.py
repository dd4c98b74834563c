"""The facts about one Service in the agent's memory, for `explain`."""

from __future__ import annotations

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeRouting
from pyproxy.errors import Problem
from pyproxy.inspect.listing import Listing
from pyproxy.inspect.services import list_routing
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.inspect.status import health, is_healthy
from pyproxy.inspect.target import Target, resolve
from pyproxy.model.config_problems import ConfigProblem
from pyproxy.model.objects import EndpointSlice, Kind, Node, Service
from pyproxy.policy.routing import ServiceRouting


class AgentFacts(msgspec.Struct, frozen=True):
    """One Service in the agent's memory, and the agent itself. In JSON, addresses are base64.

    `service` is None if the agent has no such Service, `routing` where none is programmed.
    `api_age` is in seconds, as in Snapshot. `sync_pending` is true if a sync is due.
    """

    settings: Settings
    healthy: bool
    health: str
    api_age: float
    sync_pending: bool
    node: Node | None
    node_routing: NodeRouting
    target: Target
    service: Service | None = None
    slices: tuple[EndpointSlice, ...] = ()
    routing: ServiceRouting | None = None
    problems: tuple[Problem, ...] = ()
    config_problems: tuple[ConfigProblem, ...] = ()


def agent_facts(snapshot: Snapshot, text: str) -> AgentFacts:
    """Return a snapshot's facts about a target. Raises UsageError if it cannot be parsed."""
    return list_agent_facts(snapshot, text).whole()


def list_agent_facts(snapshot: Snapshot, text: str) -> Listing[AgentFacts]:
    """Return a snapshot's facts about a target, slice by slice. Raises UsageError."""
    target = resolve(snapshot, text)
    name = target.name
    facts = AgentFacts(
        settings=snapshot.settings,
        healthy=is_healthy(snapshot),
        health=health(snapshot),
        api_age=snapshot.api_age,
        sync_pending=snapshot.pending > 0,
        node=snapshot.node,
        node_routing=snapshot.node_routing,
        target=target,
        config_problems=snapshot.config_problems,
    )
    if name is None:
        return Listing(facts, {})
    slices = snapshot.slices_of(name)
    # A problem of a slice is a problem of its Service too.
    subjects = {(Kind.SERVICE.value, str(name))}
    subjects |= {(Kind.ENDPOINT_SLICE.value, str(each.name)) for each in slices}
    routing = snapshot.routings.get(name)
    head = msgspec.structs.replace(facts, service=snapshot.services.get(name))
    problems = (p for p in snapshot.problems if (p.kind, p.name) in subjects)
    fields = {"slices": iter(slices), "problems": problems}
    return Listing(head, fields, {"routing": list_routing(routing)} if routing else {})
