"""Facts about one Service from agent, API server and kernel: the input of `explain`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeRouting, StateDiff
from pyproxy.errors import Problem
from pyproxy.inspect.listing import Listing
from pyproxy.inspect.services import families, list_routing
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.inspect.status import health, is_healthy
from pyproxy.inspect.target import Target, resolve
from pyproxy.model.address import Address, Backend, Family, family_of
from pyproxy.model.config_problems import ConfigProblem
from pyproxy.model.objects import (
    Endpoint,
    EndpointSlice,
    Kind,
    Node,
    ObjectName,
    Service,
    ServicePort,
)
from pyproxy.policy.endpoints import merge_slices
from pyproxy.policy.routing import PortRouting, ServiceRouting
from pyproxy.policy.service_bounds import within_bounds
from pyproxy.source.api_objects import ServiceLookup


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


class KernelFacts(msgspec.Struct, frozen=True):
    """The kernel state of one Service, read on this node.

    `diff` is its difference to the desired state; None if it was not read, with the cause in
    `not_read`. `stale_flows` are conntrack entries, one line each, that lead to an unused endpoint;
    None if they were not read, with the cause in `flows_not_read`.
    """

    diff: StateDiff | None = None
    not_read: str = ""
    stale_flows: tuple[str, ...] | None = None
    flows_not_read: str = ""


class PortFacts(msgspec.Struct, frozen=True):
    """One port of the Service in one family, and its endpoints in all slices."""

    family: Family
    port: ServicePort
    endpoints: dict[Backend, Endpoint]
    routing: PortRouting | None

    def __str__(self) -> str:
        name = f"{self.port.name} " if self.port.name else ""
        return f"{name}{self.port.port}/{self.port.protocol.name}"


class Facts(msgspec.Struct, frozen=True):
    """All facts about one target. `client` is the client's address if the user gave one."""

    agent: AgentFacts
    api: ServiceLookup
    kernel: KernelFacts
    client: Address | None = None

    @property
    def name(self) -> ObjectName:
        """The Service's name, empty if the target has none."""
        return self.agent.target.name or ObjectName("", "")

    @property
    def service(self) -> Service:
        """The Service. Raises ValueError if the agent has none: check `agent.service` first."""
        if self.agent.service is None:
            raise ValueError("the agent has no such Service")
        return self.agent.service

    @property
    def hostname(self) -> str:
        """This node's name."""
        return self.agent.settings.node_name

    @property
    def families(self) -> tuple[Family, ...]:
        """The target's address families."""
        destination = self.agent.target.destination
        if destination is not None:
            return (family_of(destination.address),)
        return families(self.service)

    def ports(self) -> Iterator[PortFacts]:
        """Yield the target's ports."""
        # Merged again, because the routing has only the endpoints that are used.
        bounds = self.agent.settings.bounds
        bounded = within_bounds(self.service, self.agent.slices, self.hostname, bounds)
        merged = merge_slices(bounded.slices, self.hostname)
        ports = self.agent.routing.ports if self.agent.routing else ()
        routings = {(port.family, port.name, port.protocol): port for port in ports}
        for family in self.families:
            for port in bounded.service.ports:
                key = (family, port.name, port.protocol)
                if self._is_target(routings.get(key)):
                    yield PortFacts(family, port, merged.get(key, {}), routings.get(key))

    def _is_target(self, routing: PortRouting | None) -> bool:
        destination = self.agent.target.destination
        # For an unserved destination, the steps explain all ports of the likeliest Service.
        if destination is None or not self.agent.target.served:
            return True
        return routing is not None and any(
            (f.address or destination.address, f.port, routing.protocol)
            == (destination.address, destination.port, destination.protocol)
            for f in routing.frontends
        )
