"""Running queries: on the agent of this node, or without one from API server and kernel."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from pyproxy.config import command_line
from pyproxy.config.settings import Settings
from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.client import AgentTimeoutError, Client, NoAgentError
from pyproxy.inspect.queries import SETTINGS, A, NoArgs, Query, R, Stream
from pyproxy.inspect.snapshot import AgentView


class QueryRunner:
    """Runs queries for one command.

    The first agent failure switches to reading API server and kernel, with a note on stderr.
    `settings` are those of this command line, which apply without an agent.
    """

    def __init__(self, namespace: argparse.Namespace) -> None:
        self.settings: Settings = command_line.settings(namespace)
        self._client: Client | None = None
        self._require_agent: bool = namespace.require_agent
        self._no_agent: bool = namespace.no_agent
        if namespace.require_agent and namespace.no_agent:
            raise UsageError("--require-agent and --no-agent exclude each other: give one")
        if namespace.require_agent:
            self._check_socket()
        if not namespace.no_agent and self.settings.inspect_socket:
            self._client = Client(self.settings.inspect_socket)

    def query(self, query: Query[A, R], arguments: A) -> R:
        """Return the result of a query. Raises PyproxyError."""
        if self._client is not None:
            try:
                return self._client.query(query, arguments)
            # Only these two: an error that a running agent returns is the result.
            except (NoAgentError, AgentTimeoutError) as error:
                self._give_up_agent(error, "reading API server and kernel instead")
        return query.run(self._oneshot, arguments)

    def query_agent(self, query: Query[A, R], arguments: A) -> R:
        """Return the result of a query that only a running agent has. Raises PyproxyError."""
        return self._agent().query(query, arguments)

    def agent_settings(self) -> Settings:
        """Return the settings of the running agent, or those of this command line.

        Raises PyproxyError.
        """
        if self._client is not None:
            try:
                return self._client.query(SETTINGS, NoArgs())
            except (NoAgentError, AgentTimeoutError) as error:
                self._give_up_agent(error, "using the flags of this command")
        return self.settings

    def _give_up_agent(self, error: PyproxyError, instead: str) -> None:
        if self._require_agent:
            raise error
        note(f"{error}: {instead}")
        self._client = None

    def stream(self, stream: Stream[A, R], arguments: A) -> Iterator[R]:
        """Yield the results of a stream, which needs an agent. Raises PyproxyError."""
        return self._agent().stream(stream, arguments)

    def _agent(self) -> Client:
        """Return a client of the agent. Raises UsageError if the flags exclude one."""
        if self._no_agent:
            raise UsageError("--no-agent: only an agent has what this command shows: omit the flag")
        self._check_socket()
        return self._client or Client(self.settings.inspect_socket)

    def _check_socket(self) -> None:
        if not self.settings.inspect_socket:
            raise UsageError("--inspect-socket: it is empty: give the path of an agent's socket")

    @cached_property
    def _oneshot(self) -> AgentView:
        return self.oneshot(self.settings)

    @staticmethod
    def oneshot(settings: Settings, files: Sequence[Path] = ()) -> AgentView:
        """Read API server and kernel once, and apply the objects of `files`. Raises PyproxyError.

        Silences the log, because the result of every query includes the problems.
        """
        logging.getLogger("pyproxy").setLevel(logging.CRITICAL)
        # Imports urllib3 and the agent, which a query to a running agent does without.
        from pyproxy.agent.oneshot import read_once  # noqa: PLC0415

        return read_once(settings, files)


def note(text: str) -> None:
    """Print a line on stderr, beside the output."""
    print(f"pyproxy: {text}", file=sys.stderr)
