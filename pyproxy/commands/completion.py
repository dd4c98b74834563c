"""`pyproxy completion`: a script by which a shell completes commands and flags."""

from __future__ import annotations

import argparse

import shtab

from pyproxy.commands.command import Command
from pyproxy.config import command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the shell."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="whose script is wanted")


def run(namespace: argparse.Namespace) -> int:
    """Print the script."""
    print(shtab.complete(_parser(), shell=namespace.shell))
    return 0


def _parser() -> argparse.ArgumentParser:
    # Every other command is imported for it, so that it knows what they take.
    from pyproxy.commands.catalogue import COMMANDS  # noqa: PLC0415

    parser = argparse.ArgumentParser("pyproxy")
    commands = parser.add_subparsers(dest="command")
    for name in ("run", "cleanup"):
        command_line.add_flags(commands.add_parser(name))
    for name, entry in COMMANDS.items():
        entry.load().declare(commands.add_parser(name, help=entry.purpose), entry.purpose)
    commands.add_parser("version")
    return parser


COMMAND = Command(add_arguments, run, ("0 printed",))
