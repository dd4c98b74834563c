"""Whom a command asks: the agent on this node, or nobody but API and kernel."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from pyproxy.config import command_line
from pyproxy.config.settings import Settings
from pyproxy.dataplane.interface import Dataplane
from pyproxy.inspect.client import Client, NoAgentError, SilentAgentError
from pyproxy.inspect.evidence import EVIDENCE, Target
from pyproxy.inspect.query import Q, Query, R, Stream
from pyproxy.inspect.snapshot import AgentView
from pyproxy.model.destination import Destination


class Asker:
    """Answers to questions, wherever they come from.

    `settings` are those of this command line, which count where no agent answers.
    """

    def __init__(self, namespace: argparse.Namespace) -> None:
        self.settings: Settings = command_line.settings(namespace)
        self._client: Client | None = None
        if not namespace.no_agent and self.settings.inspect_socket:
            self._client = Client(self.settings.inspect_socket)

    @property
    def has_agent(self) -> bool:
        """Whether an agent has not yet failed to answer."""
        return self._client is not None

    def ask(self, endpoint: Query[Q, R], question: Q) -> R:
        """Ask one question. Raises PyproxyError."""
        if self._client is not None:
            try:
                return self._client.ask(endpoint, question)
            except (NoAgentError, SilentAgentError) as error:
                self._without(f"{error}: reading API and kernel here")
        return endpoint.respond(self._survey, question)

    def settings_in_force(self, about: Destination) -> Settings:
        """Give the settings of the agent that runs here, or else this command line's.

        The agent is asked for what it knows of `about`, of which its settings are a part. Raises
        PyproxyError.
        """
        if self._client is not None:
            try:
                return self._client.ask(EVIDENCE, Target(str(about))).settings
            except (NoAgentError, SilentAgentError) as error:
                self._without(f"{error}: going by the flags that are given")
        return self.settings

    def _without(self, why: str) -> None:
        remark(why)
        self._client = None

    def follow(self, stream: Stream[Q, R], question: Q) -> Iterator[R]:
        """Follow a running agent; there is nothing to follow without one. Raises PyproxyError."""
        client = self._client or Client(self.settings.inspect_socket)
        return client.follow(stream, question)

    @cached_property
    def _survey(self) -> AgentView:
        return self.survey(self.settings)

    @staticmethod
    def survey(settings: Settings, files: Sequence[Path] = ()) -> AgentView:
        """Read everything once, with the objects of `files` over it. Raises PyproxyError."""
        # The agent brings libraries with it that a question to a running one should not wait for.
        # What is wrong with objects is part of the answer, and not a second time on stderr.
        logging.getLogger("pyproxy").setLevel(logging.CRITICAL)
        from pyproxy.agent.oneshot import survey  # noqa: PLC0415

        return survey(settings, files)


@contextmanager
def kernel(settings: Settings) -> Iterator[Dataplane[Any]]:
    """Open the dataplane of these settings for reading. Raises UsageError."""
    from pyproxy.agent import dataplanes  # noqa: PLC0415

    with closing(dataplanes.make(settings)) as dataplane:
        dataplane.prepare_to_read()
        yield dataplane


def remark(text: str) -> None:
    """Tell a person something beside the answer."""
    print(f"pyproxy: {text}", file=sys.stderr)
