"""The queries that the agent's socket serves: path, arguments and result type of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from pyproxy.config.settings import Settings
from pyproxy.inspect.agent_facts import AgentFacts, list_agent_facts
from pyproxy.inspect.diff import DesiredState, list_desired_state
from pyproxy.inspect.listing import Listing
from pyproxy.inspect.services import Services, list_services, object_name
from pyproxy.inspect.slow_changes import SlowChanges
from pyproxy.inspect.snapshot import AgentView, Change
from pyproxy.inspect.status import Status, list_status
from pyproxy.source.api_objects import ServiceLookup

A = TypeVar("A", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)


class Query(msgspec.Struct, Generic[A, R], frozen=True):
    """A request with one result.

    `arguments` is a struct of texts, numbers and booleans, encoded as a URL query string; `result`
    is encoded as JSON. `handler` runs in the request's own thread and may raise PyproxyError. A
    handler of a long result returns a listing of it.
    """

    path: str
    arguments: type[A]
    result: type[R]
    handler: Callable[[AgentView, A], R | Listing[R]]

    def run(self, agent: AgentView, arguments: A) -> R:
        """Return the whole result. Raises PyproxyError."""
        found = self.handler(agent, arguments)
        return found.whole() if isinstance(found, Listing) else found


class Stream(msgspec.Struct, Generic[A, R], frozen=True):
    """A request with results until the client closes the connection: JSON, one line each.

    `handler` yields the results since the last time. If there are none the server writes an empty
    line, because only a write detects a closed connection.
    """

    path: str
    arguments: type[A]
    result: type[R]
    handler: Callable[[AgentView, A], Iterator[Sequence[R]]]


class ErrorReply(msgspec.Struct, frozen=True):
    """The body of every error response; `usage` is true if the request was wrong."""

    error: str
    usage: bool = False


class NoArgs(msgspec.Struct, frozen=True):
    """No arguments."""


class ServicesArgs(msgspec.Struct, frozen=True):
    """The Service `name` (NAMESPACE/NAME), those of one namespace, or all if both are empty."""

    name: str = ""
    namespace: str = ""


class FactsArgs(msgspec.Struct, frozen=True):
    """NAMESPACE/NAME or ADDRESS:PORT[/udp|sctp]."""

    target: str


class LookupArgs(msgspec.Struct, frozen=True):
    """NAMESPACE/NAME."""

    name: str


class WatchArgs(msgspec.Struct, frozen=True):
    """The Services of one namespace, or all if it is empty."""

    namespace: str = ""


def _watch(agent: AgentView, arguments: WatchArgs) -> Iterator[Sequence[Change]]:
    prefix = f"{arguments.namespace}/" if arguments.namespace else ""
    with agent.watch() as changes:
        for batch in changes:
            yield [change for change in batch if change.service.startswith(prefix)]


def _status(agent: AgentView, _: NoArgs) -> Listing[Status]:
    return list_status(agent.snapshot(), agent.table_usage(), agent.flow_offload())


STATUS = Query("/status", NoArgs, Status, _status)
SLOW = Query("/slow", NoArgs, SlowChanges, lambda agent, _: agent.snapshot().slow_changes)
SERVICES = Query(
    "/services",
    ServicesArgs,
    Services,
    lambda agent, args: list_services(agent.snapshot(), args.name, args.namespace),
)
DESIRED = Query(
    "/desired", NoArgs, DesiredState, lambda agent, _: list_desired_state(agent.snapshot())
)
SETTINGS = Query("/settings", NoArgs, Settings, lambda agent, _: agent.snapshot().settings)
FACTS = Query(
    "/facts",
    FactsArgs,
    AgentFacts,
    lambda agent, args: list_agent_facts(agent.snapshot(), args.target),
)
LOOKUP = Query(
    "/lookup", LookupArgs, ServiceLookup, lambda agent, args: agent.look_up(object_name(args.name))
)
WATCH = Stream("/watch", WatchArgs, Change, _watch)

QUERIES: Mapping[str, Query[Any, Any] | Stream[Any, Any]] = {
    query.path: query for query in (STATUS, SLOW, SERVICES, DESIRED, SETTINGS, FACTS, LOOKUP, WATCH)
}
