"""Commands in the documentation: parse the arguments of pyproxy and of its plugin."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import pyproxy_lab.command as lab

from pyproxy import cli
from pyproxy.commands import registry
from pyproxy.config import command_line
from pyproxy.config.command_line import Parser
from pyproxy.kubectl.command import COMMANDS as KUBECTL_COMMANDS

_SHOWN = re.compile(r"^    \$ (.*)$", re.MULTILINE)
_IN_POD = re.compile(r"kubectl (?:-n \S+ )?exec \S+ -- ")


def agent(arguments: Sequence[str]) -> None:
    """Parse the arguments of `pyproxy`. Raises UsageError."""
    name, *rest = arguments
    parser = Parser(name)
    if name in registry.COMMANDS:
        registry.COMMANDS[name].load().declare(parser, "")
    elif name == "lab":
        lab.add_arguments(parser)
    else:
        assert name in cli.STATUSES
        command_line.add_flags(parser)
    namespace = parser.parse_all(list(command_line.go_style(rest)))
    if name in cli.STATUSES:
        command_line.settings(namespace)


def plugin(arguments: Sequence[str]) -> None:
    """Parse the arguments of `kubectl pyproxy`. Raises UsageError."""
    name, *rest = arguments
    parser = Parser(name)
    command = KUBECTL_COMMANDS[name].load()
    command.add_arguments(parser)
    if command.forwards:
        parser.parse_known_args(rest)
    else:
        parser.parse_all(rest)


def shown(page: str) -> Iterator[str]:
    """Yield the commands of a page's indented blocks, each up to its first pipe."""
    for command in _SHOWN.findall(page):
        yield command.partition(" | ")[0].partition(" <<")[0]


def check(command: str) -> bool:
    """Parse a command if it is pyproxy's, and return whether it is. Raises UsageError."""
    words = shlex.split(_IN_POD.sub("", command).removeprefix("sudo "))
    if words[:2] == ["kubectl", "pyproxy"]:
        plugin(words[2:])
    elif words[0] == "pyproxy":
        agent(words[1:])
    else:
        return False
    return True
