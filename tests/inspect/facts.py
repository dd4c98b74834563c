"""Facts about one Service as the agent would have them, without an agent or a kernel."""

from __future__ import annotations

from collections.abc import Sequence

from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import NodeRouting, StateDiff
from pyproxy.hostnet.path_facts import PathFacts
from pyproxy.inspect.agent_facts import AgentFacts
from pyproxy.inspect.facts import Facts, KernelFacts
from pyproxy.inspect.target import Target
from pyproxy.model.address import Address, parse_network
from pyproxy.model.destination import Destination
from pyproxy.model.objects import EndpointSlice, Node, Service
from pyproxy.policy.endpoints import route_service
from pyproxy.source.api_objects import ServiceLookup
from tests.builders import HOST, ip

NETWORKS = (parse_network("10.244.1.0/24"), parse_network("fd10:1::/64"))
NODE_ADDRESSES = (ip("172.30.0.11"), ip("fd30::11"))
THIS_NODE = Node(HOST, NODE_ADDRESSES, NETWORKS, zone="zone-1")


def agent_facts(
    service: Service,
    slices: Sequence[EndpointSlice],
    *,
    destination: Destination | None = None,
    settings: Settings | None = None,
    node: Node = THIS_NODE,
) -> AgentFacts:
    """Return a healthy agent's facts about a Service that it has programmed."""
    return AgentFacts(
        settings=settings or Settings(HOST),
        healthy=True,
        health="healthy",
        api_age=0.0,
        sync_pending=False,
        node=node,
        node_routing=NodeRouting(node.pod_networks, node.addresses),
        target=Target(service.name, destination),
        service=service,
        slices=tuple(slices),
        routing=route_service(service, slices, node, HOST),
    )


def facts(agent: AgentFacts, path: PathFacts | None = None, client: Address | None = None) -> Facts:
    """Return facts whose kernel state is the desired one."""
    kernel = KernelFacts(StateDiff(), stale_flows=())
    lookup = ServiceLookup(service_skipped="not queried", pods_skipped="not queried")
    return Facts(agent, lookup, kernel, client, path or PathFacts())
