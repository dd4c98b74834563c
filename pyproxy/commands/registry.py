"""The inspection commands by name; each module is imported when its command runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from pyproxy.config.command_line import Parser, go_style
from pyproxy.errors import NO_RESPONSE, PermissionKernelError, PyproxyError, UsageError

if TYPE_CHECKING:
    from pyproxy.commands.command import Command

C = TypeVar("C")


class Entry(msgspec.Struct, Generic[C], frozen=True):
    """A command's help text, and the module with its COMMAND."""

    help: str
    module: str

    def load(self) -> C:
        """Import the command."""
        command: C = importlib.import_module(self.module).COMMAND
        return command


COMMANDS: Mapping[str, Entry[Command]] = {
    "completion": Entry("print a shell completion script", "pyproxy.commands.completion"),
    "diff": Entry(
        "compare desired state and kernel state, now or after a change",
        "pyproxy.commands.diff",
    ),
    "explain": Entry(
        "check a Service step by step, from its fields to the kernel", "pyproxy.commands.explain"
    ),
    "services": Entry(
        "list Service ports with their addresses and endpoints", "pyproxy.commands.services"
    ),
    "status": Entry("show the status of the agent on this node", "pyproxy.commands.status"),
    "top": Entry("show new connections per second by Service", "pyproxy.commands.top"),
    "trace": Entry(
        "trace a packet through the rules, or watch real packets", "pyproxy.commands.trace"
    ),
    "version": Entry("print the version", "pyproxy.commands.version"),
    "watch": Entry("print changes as they are programmed", "pyproxy.commands.watch"),
}


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command and return its exit status. Raises UsageError and PermissionKernelError."""
    # The agent has signals of its own, and imports this module too.
    from pyproxy.interrupts import interrupted_by  # noqa: PLC0415

    entry = COMMANDS[name]
    command = entry.load()
    parser = Parser(f"pyproxy {name}", allow_abbrev=False)
    command.declare(parser, entry.help)
    namespace = parser.parse_all(list(go_style(arguments)))
    try:
        with interrupted_by():
            return command.run(namespace)
    except (UsageError, PermissionKernelError):
        raise
    except PyproxyError as error:
        # cli.main would return 1, which is a result of some commands.
        print(f"pyproxy: {error}", file=sys.stderr)
        return NO_RESPONSE
