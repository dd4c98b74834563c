"""`pyproxy explain`: check a Service step by step, from its fields to the kernel."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from functools import partial
from threading import Thread
from typing import TypeVar

from pyproxy.commands.command import View
from pyproxy.commands.explanation import show
from pyproxy.commands.query_runner import QueryRunner
from pyproxy.errors import KernelError, UsageError
from pyproxy.hostnet.devices import read_devices
from pyproxy.hostnet.read import read_path
from pyproxy.inspect.agent_facts import AgentFacts
from pyproxy.inspect.explain import Explanation, explain
from pyproxy.inspect.facts import Facts
from pyproxy.inspect.kernel_facts import kernel_facts
from pyproxy.inspect.queries import FACTS, LOOKUP, FactsArgs, LookupArgs
from pyproxy.inspect.service_paths import service_paths
from pyproxy.inspect.target import parse
from pyproxy.model.address import Address, parse_address
from pyproxy.source.api_objects import ServiceLookup

T = TypeVar("T")


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
    # In iptables mode both read large tables, and mostly wait for iptables-save and the kernel.
    paths = service_paths(agent, client, _own_addresses(agent) if client else ())
    path = in_background(partial(read_path, paths, connect=namespace.probe))
    facts = Facts(agent, _api_facts(queries, agent), kernel_facts(agent), client, path())
    return explain(namespace.target, facts)


def in_background(read: Callable[[], T]) -> Callable[[], T]:
    """Call a function in a thread; return one that waits for its value, or raises its error."""
    values: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            values.append(read())
        except BaseException as error:  # raised again in the thread that waits
            errors.append(error)

    # The thread is in the network namespace of the calling one.
    thread = Thread(target=run, daemon=True)
    thread.start()

    def wait() -> T:
        thread.join()
        if errors:
            raise errors[0]
        return values[0]

    return wait


def _client(given: str | None) -> Address | None:
    try:
        return parse_address(given) if given else None
    except ValueError as error:
        raise UsageError(f"--from: {error}") from error


def _own_addresses(agent: AgentFacts) -> Collection[Address]:
    try:
        return read_devices().own_addresses(agent.node.pod_networks if agent.node else ())
    except KernelError:  # the step of the routes says so
        return ()


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
