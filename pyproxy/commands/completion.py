"""`pyproxy completion`: print a shell completion script."""

from __future__ import annotations

import argparse

import shtab

from pyproxy.commands.command import Command
from pyproxy.config import command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the shell."""
    parser.add_argument(
        "shell", choices=shtab.SUPPORTED_SHELLS, metavar="SHELL", help="bash, zsh or another shell"
    )


def run(namespace: argparse.Namespace) -> int:
    """Print the script."""
    print(shtab.complete(_parser(), shell=namespace.shell))
    return 0


def _parser() -> argparse.ArgumentParser:
    # The registry imports this module by name, so this module imports it late.
    from pyproxy.commands.registry import COMMANDS  # noqa: PLC0415

    parser = argparse.ArgumentParser("pyproxy")
    commands = parser.add_subparsers(dest="command")
    for name in ("run", "cleanup"):
        command_line.add_flags(commands.add_parser(name))
    for name, entry in COMMANDS.items():
        entry.load().declare(commands.add_parser(name, help=entry.help), entry.help)
    return parser


COMMAND = Command(add_arguments, run)
