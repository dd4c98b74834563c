"""Facts about one Service from agent, API server and kernel: the input of `explain`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pyproxy.dataplane.interface import StateDiff
from pyproxy.hostnet.path_facts import PathFacts
from pyproxy.inspect.agent_facts import AgentFacts
from pyproxy.inspect.services import families
from pyproxy.model.address import Address, Backend, Family, Protocol, address_text, family_of
from pyproxy.model.destination import Destination
from pyproxy.model.objects import (
    Endpoint,
    ObjectName,
    Service,
    ServicePort,
)
from pyproxy.policy.endpoints import merge_slices
from pyproxy.policy.routing import Frontend, PortRouting, with_frontends
from pyproxy.policy.service_bounds import within_bounds
from pyproxy.source.api_objects import ServiceLookup


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
    path: PathFacts = PathFacts()

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
        return target_families(self.agent)

    def ports(self) -> Iterator[PortFacts]:
        """Yield the target's ports."""
        return target_ports(self.agent)


def target_families(agent: AgentFacts) -> tuple[Family, ...]:
    """Return the target's address families; of a Service that the agent does not have, none."""
    destination = agent.target.destination
    if destination is not None:
        return (family_of(destination.address),)
    return families(agent.service) if agent.service else ()


def unserved_families(facts: Facts) -> tuple[Family, ...]:
    """Return the target's families in which this node has no address, and so serves nothing."""
    served = facts.agent.node_routing.reserved.families
    return tuple(family for family in facts.families if family not in served)


def target_ports(agent: AgentFacts) -> Iterator[PortFacts]:
    """Yield the target's ports, each with those of its frontends that the target names."""
    if agent.service is None:
        return
    # Merged again, because the routing has only the endpoints that are used.
    settings = agent.settings
    bounded = within_bounds(agent.service, agent.slices, settings.node_name, settings.bounds)
    merged = merge_slices(bounded.slices, settings.node_name)
    ports = agent.routing.ports if agent.routing else ()
    routings = {(port.family, port.name, port.protocol): port for port in ports}
    for family in target_families(agent):
        for port in bounded.service.ports:
            key = (family, port.name, port.protocol)
            routing = routings.get(key)
            endpoints = merged.get(key, {})
            destination = agent.target.destination
            # For an unserved destination, the steps explain all ports of the likeliest Service.
            if destination is None or not agent.target.served:
                yield PortFacts(family, port, endpoints, routing)
            elif routing is not None and (frontends := _frontends_at(routing, destination)):
                yield PortFacts(family, port, endpoints, with_frontends(routing, frontends))


def frontend_text(frontend: Frontend, protocol: Protocol) -> str:
    """Format a frontend as `10.96.0.1 80/TCP`."""
    address = address_text(frontend.address) if frontend.address else "any node port address"
    return f"{address} {frontend.port}/{protocol.name}"


def _frontends_at(routing: PortRouting, destination: Destination) -> tuple[Frontend, ...]:
    """Return the frontend that serves a destination: one of its own address, else a node port."""
    if routing.protocol is not destination.protocol:
        return ()
    found = [f for f in routing.frontends if f.port == destination.port]
    exact = tuple(f for f in found if f.address == destination.address)
    return exact or tuple(f for f in found if not f.address)
