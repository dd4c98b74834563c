"""`pyproxy explain`: check a Service step by step, from its fields to the kernel."""

from __future__ import annotations

import argparse

from pyproxy.commands.command import View
from pyproxy.commands.explanation import show
from pyproxy.commands.query_runner import QueryRunner
from pyproxy.errors import UsageError
from pyproxy.hostnet.read import read_path
from pyproxy.inspect.explain import Explanation, explain
from pyproxy.inspect.facts import AgentFacts, Facts
from pyproxy.inspect.kernel_facts import kernel_facts
from pyproxy.inspect.queries import FACTS, LOOKUP, FactsArgs, LookupArgs
from pyproxy.inspect.service_paths import service_paths
from pyproxy.inspect.target import parse
from pyproxy.model.address import Address, parse_address
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
    parser.add_argument(
        "--probe",
        action="store_true",
        help="connect from this node to the endpoints and through the Service",
    )


def fetch(queries: QueryRunner, namespace: argparse.Namespace) -> Explanation:
    """Collect the facts and explain them."""
    parse(namespace.target)  # a wrong target is a usage error before any query
    client = _client(namespace.client)
    agent = queries.query(FACTS, FactsArgs(namespace.target))
    facts = Facts(
        agent,
        _api_facts(queries, agent),
        kernel_facts(agent),
        client,
        read_path(service_paths(agent, client), connect=namespace.probe),
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


COMMAND = View(
    fetch,
    show,
    add_arguments,
    status=lambda found: 0 if found.ok else 1,
    statuses=("0 no step failed", "1 a step failed"),
).command()
