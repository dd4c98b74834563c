"""A command: what it asks, how the answer is shown, and with which status it ends."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from pyproxy.commands import output
from pyproxy.commands.arguments import add_output, add_source, add_watch, output_of
from pyproxy.commands.asker import Asker
from pyproxy.commands.parts import Part
from pyproxy.commands.statuses import ALWAYS

V = TypeVar("V", bound=msgspec.Struct)


class Command(msgspec.Struct, frozen=True):
    """Anything with arguments that ends with a status.

    `statuses` are lines for --help, such as `0 all is well`.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    statuses: tuple[str, ...] = ("0 answered",)

    def declare(self, parser: argparse.ArgumentParser, purpose: str) -> None:
        """Declare its arguments, with its purpose and statuses for --help."""
        parser.description = purpose
        parser.epilog = "exit statuses: " + "; ".join((*self.statuses, *ALWAYS))
        self.add_arguments(parser)


class View(msgspec.Struct, Generic[V], frozen=True):
    """A command that shows one value: as tables, as JSON or YAML, once or again and again.

    `ask` gets the value. `show` gives what a terminal shows of it. `status` is the exit status that
    the value means.
    """

    ask: Callable[[Asker, argparse.Namespace], V]
    show: Callable[[V], Iterable[Part]]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None
    status: Callable[[V], int] = lambda _: 0
    statuses: tuple[str, ...] = ("0 answered",)

    def command(self) -> Command:
        """Make a command of it."""
        return Command(self._declare, self._run, self.statuses)

    def _declare(self, parser: argparse.ArgumentParser) -> None:
        self.add_arguments(parser)
        add_output(parser)
        add_watch(parser)
        add_source(parser)

    def _run(self, namespace: argparse.Namespace) -> int:
        asker = Asker(namespace)
        while True:
            value = self.ask(asker, namespace)
            self._print(value, namespace)
            if namespace.watch is None:
                return self.status(value)
            time.sleep(namespace.watch)

    def _print(self, value: V, namespace: argparse.Namespace) -> None:
        if (encode := output_of(namespace)) is not None:
            print(encode(value), flush=True)
            return
        output.show(sys.stdout, self.show(value), anew=namespace.watch is not None)
