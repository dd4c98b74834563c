"""The kernel state of one Service, read in the caller's thread and network namespace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from pyproxy.config.settings import Settings
from pyproxy.dataplane.conntrack.frontends import flow_targets, is_stale
from pyproxy.dataplane.interface import Dataplane, NodeRouting, StateDiff
from pyproxy.errors import KernelError, PyproxyError
from pyproxy.inspect.agent_facts import AgentFacts
from pyproxy.inspect.facts import KernelFacts
from pyproxy.model.address import Backend, backend_text
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.netlink.flows import Flow
from pyproxy.policy.routing import ServiceRouting


@contextmanager
def kernel(settings: Settings) -> Iterator[Dataplane[Any]]:
    """Open the dataplane of these settings for reading, and close it. Raises UsageError."""
    from pyproxy.dataplane import modes  # noqa: PLC0415

    with closing(modes.of(settings.mode).make(settings)) as dataplane:
        dataplane.prepare_to_read()
        yield dataplane


def kernel_facts(agent: AgentFacts) -> KernelFacts:
    """Read the kernel state of an agent's Service. Blocks; reads all rules of legacy iptables."""
    routing = agent.routing
    if routing is None:
        return KernelFacts(not_read="not programmed", flows_not_read="not programmed")
    diff, not_read = _state_diff(agent.settings, routing, agent.node_routing)
    try:
        return KernelFacts(diff, not_read, stale_flows=tuple(_stale_flows(routing)))
    except KernelError as error:
        return KernelFacts(diff, not_read, flows_not_read=str(error))


def _state_diff(
    settings: Settings, routing: ServiceRouting, node: NodeRouting
) -> tuple[StateDiff | None, str]:
    try:
        with kernel(settings) as dataplane:
            return dataplane.compare(routing, node), ""
    except PyproxyError as error:
        return None, str(error)


def _stale_flows(routing: ServiceRouting) -> Iterator[str]:
    with closing(Conntrack()) as table:
        for key, target in flow_targets(routing):
            for flows in table.flows(key.family, key.protocol, key.destination):
                for flow in flows:
                    if flow.destination == key.destination and is_stale(flow, (target,)):
                        yield _flow_text(flow)


def _flow_text(flow: Flow) -> str:
    source, destination, endpoint = (
        backend_text(Backend(each)) for each in (flow.source, flow.destination, flow.reply_source)
    )
    return f"{source} -> {destination} goes to {endpoint}"
