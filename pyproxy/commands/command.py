"""A command: arguments, run, exit statuses."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from pyproxy.commands import printer
from pyproxy.commands.arguments import add_output, add_source, add_watch, encoder
from pyproxy.commands.output import Part
from pyproxy.commands.query_runner import QueryRunner
from pyproxy.errors import NO_RESPONSE

COMMON_STATUSES = (
    "2 wrong arguments, or no permission",
    f"{NO_RESPONSE} agent, API server or kernel did not respond",
    "130 stopped by Ctrl-C",
)
"""The exit statuses that all commands share, for --help."""

V = TypeVar("V", bound=msgspec.Struct)


class Command(msgspec.Struct, frozen=True):
    """A command; `run` returns its exit status, `statuses` are lines for --help."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    statuses: tuple[str, ...] = ("0 success",)

    def declare(self, parser: argparse.ArgumentParser, description: str) -> None:
        """Declare arguments and --help."""
        parser.description = description
        parser.epilog = "exit statuses: " + "; ".join((*self.statuses, *COMMON_STATUSES))
        self.add_arguments(parser)


class View(msgspec.Struct, Generic[V], frozen=True):
    """A command that prints one value as tables, JSON or YAML, once or repeatedly.

    `fetch` returns the value, `show` its form on a terminal, `status` its exit status.
    """

    fetch: Callable[[QueryRunner, argparse.Namespace], V]
    show: Callable[[V], Iterable[Part]]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None
    status: Callable[[V], int] = lambda _: 0
    statuses: tuple[str, ...] = ("0 success",)

    def command(self) -> Command:
        """Return the view as a command."""
        return Command(self._declare, self._run, self.statuses)

    def _declare(self, parser: argparse.ArgumentParser) -> None:
        self.add_arguments(parser)
        add_output(parser)
        add_watch(parser)
        add_source(parser)

    def _run(self, namespace: argparse.Namespace) -> int:
        queries = QueryRunner(namespace)
        # One QueryRunner for all repetitions: it remembers that there is no agent.
        while True:
            value = self.fetch(queries, namespace)
            self._print(value, namespace)
            if namespace.watch is None:
                return self.status(value)
            time.sleep(namespace.watch)

    def _print(self, value: V, namespace: argparse.Namespace) -> None:
        if (encode := encoder(namespace)) is not None:
            print(encode(value), flush=True)
            return
        printer.show(sys.stdout, self.show(value), clear=namespace.watch is not None)
