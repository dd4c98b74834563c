"""The commands that ask, by name; a module is imported when its command is called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import msgspec

from pyproxy.commands.command import Command
from pyproxy.config.command_line import Parser, go_style


class Entry(msgspec.Struct, frozen=True):
    """A command's purpose, and the module that has it as COMMAND."""

    purpose: str
    module: str

    def load(self) -> Command:
        """Import the command."""
        command: Command = importlib.import_module(self.module).COMMAND
        return command


COMMANDS: Mapping[str, Entry] = {
    "services": Entry(
        "show what each Service port has on this node, who serves it, and who does not",
        "pyproxy.commands.services",
    ),
    "status": Entry("say how the agent on this node is", "pyproxy.commands.status"),
}


def run(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names, and give its exit status.

    Raises UsageError.
    """
    name, *rest = arguments
    entry = COMMANDS[name]
    command = entry.load()
    parser = Parser(f"pyproxy {name}", allow_abbrev=False)
    command.declare(parser, entry.purpose)
    return command.run(parser.parse_args(list(go_style(rest))))
