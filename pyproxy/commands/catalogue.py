"""The commands that ask, by name; a module is imported when its command is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from pyproxy.commands.statuses import UNANSWERED
from pyproxy.config.command_line import Parser, go_style
from pyproxy.errors import PermissionKernelError, PyproxyError, UsageError

if TYPE_CHECKING:
    from pyproxy.commands.command import Command


class Entry(msgspec.Struct, frozen=True):
    """A command's purpose, and the module that has it as COMMAND."""

    purpose: str
    module: str

    def load(self) -> Command:
        """Import the command."""
        command: Command = importlib.import_module(self.module).COMMAND
        return command


COMMANDS: Mapping[str, Entry] = {
    "completion": Entry(
        "print a script by which a shell completes commands and flags",
        "pyproxy.commands.completion",
    ),
    "diff": Entry(
        "say what a sync would write now, or after a change, and write nothing",
        "pyproxy.commands.diff",
    ),
    "explain": Entry(
        "follow a Service to its packets, step by step, and say what is wrong",
        "pyproxy.commands.explain",
    ),
    "services": Entry(
        "show what each Service port has on this node, who serves it, and who does not",
        "pyproxy.commands.services",
    ),
    "status": Entry("say how the agent on this node is", "pyproxy.commands.status"),
    "top": Entry("show new connections a second, by Service", "pyproxy.commands.top"),
    "trace": Entry(
        "say what becomes of a packet, rule by rule, or watch it", "pyproxy.commands.trace"
    ),
    "watch": Entry("tell of changes as they are programmed", "pyproxy.commands.watch"),
}


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command and give its exit status.

    Raises UsageError and PermissionKernelError. Other failures are told of here, for 1 is an
    answer of some commands.
    """
    entry = COMMANDS[name]
    command = entry.load()
    parser = Parser(f"pyproxy {name}", allow_abbrev=False)
    command.declare(parser, entry.purpose)
    namespace = parser.parse_args(list(go_style(arguments)))
    try:
        return command.run(namespace)
    except (UsageError, PermissionKernelError):
        raise
    except PyproxyError as error:
        print(f"pyproxy: {error}", file=sys.stderr)
        return UNANSWERED
