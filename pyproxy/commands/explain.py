"""`pyproxy explain`: check a Service step by step, from its fields to the kernel."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing

from pyproxy.commands.command import View
from pyproxy.commands.explanation import show
from pyproxy.commands.query_runner import QueryRunner, kernel
from pyproxy.config.settings import Settings
from pyproxy.dataplane.conntrack.frontends import flow_targets, is_stale
from pyproxy.dataplane.interface import NodeRouting, StateDiff
from pyproxy.errors import KernelError, PyproxyError, UsageError
from pyproxy.hostnet.path_facts import read_path
from pyproxy.inspect.explain import Explanation, explain
from pyproxy.inspect.facts import AgentFacts, Facts, KernelFacts
from pyproxy.inspect.queries import FACTS, LOOKUP, FactsArgs, LookupArgs
from pyproxy.inspect.service_paths import service_paths
from pyproxy.inspect.target import parse
from pyproxy.model.address import Address, Backend, backend_text, parse_address
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.netlink.flows import Flow
from pyproxy.policy.routing import ServiceRouting
from pyproxy.source.api_objects import ServiceLookup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the target."""
    parser.add_argument(
        "target",
        metavar="NAMESPACE/NAME|ADDRESS:PORT[/udp|sctp]",
        help="a Service, or the destination of a client",
    )
    parser.add_argument(
        "--from",
        dest="client",
        metavar="ADDRESS",
        help="check the packets of a client with this address only",
    )


def fetch(queries: QueryRunner, namespace: argparse.Namespace) -> Explanation:
    """Collect the facts and explain them."""
    parse(namespace.target)  # a wrong target is a usage error before any query
    client = _client(namespace.client)
    agent = queries.query(FACTS, FactsArgs(namespace.target))
    facts = Facts(
        agent,
        _api_facts(queries, agent),
        _kernel_facts(agent),
        client,
        read_path(service_paths(agent, client)),
    )
    return explain(namespace.target, facts)


def _client(given: str | None) -> Address | None:
    try:
        return parse_address(given) if given else None
    except ValueError as error:
        raise UsageError(f"--from: {error}") from error


def _api_facts(queries: QueryRunner, agent: AgentFacts) -> ServiceLookup:
    name = agent.target.name
    if name is None:
        return ServiceLookup(service_skipped="no Service name", pods_skipped="no Service name")
    # The agent asks the API server, because it has a connection and the rights of its account.
    return queries.query(LOOKUP, LookupArgs(str(name)))


def _kernel_facts(agent: AgentFacts) -> KernelFacts:
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
    # The kernel is read here, not in the agent: its thread must not wait for a dump.
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


COMMAND = View(
    fetch,
    show,
    add_arguments,
    status=lambda found: 0 if found.ok else 1,
    statuses=("0 no step failed", "1 a step failed"),
).command()
