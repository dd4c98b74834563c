"""The command `pyproxy`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import pyproxy
from pyproxy import logs
from pyproxy.config import command_line
from pyproxy.config.command_line import Parser
from pyproxy.errors import PermissionKernelError, PyproxyError, UsageError

log = logging.getLogger(__name__)

_COMMANDS = {
    "run": "serve this node's Services until told to end",
    "cleanup": "remove everything that pyproxy has put into the kernel",
    "version": "print the version",
    "lab": "network namespaces, pods and a small API server to try pyproxy with",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for what a person must put right."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["lab"]:
            return _lab(arguments[1:])
        return _command(arguments)
    except (UsageError, PermissionKernelError) as error:
        print(f"pyproxy: {error}", file=sys.stderr)
        return 2
    except PyproxyError as error:
        print(f"pyproxy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in {*_COMMANDS, "-h", "--help"}:
        first = f"{arguments[0]!r} is not a command" if arguments else "no command is given"
        raise UsageError(f"{first}: use one of {', '.join(_COMMANDS)}")
    namespace, unknown = _parser().parse_known_args(list(command_line.go_style(arguments)))
    if unknown:
        command_line.refuse_unknown(unknown[0])
    if namespace.command == "version":
        print(f"pyproxy {pyproxy.__version__}")
        return 0
    settings = command_line.settings(namespace)
    logs.configure(settings.verbosity)
    if idle := command_line.without_effect(settings):
        log.warning("flags without effect: %s", idle)
    # The agent brings libraries with it that --help should not wait for.
    from pyproxy import agent  # noqa: PLC0415

    if namespace.command == "cleanup" or command_line.wants_cleanup(namespace):
        return agent.cleanup(settings)
    return agent.run(settings)


def _lab(arguments: Sequence[str]) -> int:
    try:
        from pyproxy.lab import command  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageError(
            f"lab: the module {error.name} is missing: install it with pip install 'pyproxy[lab]'"
        ) from error
    parser = Parser("pyproxy lab", description=_COMMANDS["lab"], allow_abbrev=False)
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def _parser() -> Parser:
    parser = Parser("pyproxy", description="A Service proxy for Kubernetes nodes.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, purpose in _COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        if name in {"run", "cleanup"}:
            command_line.add_flags(command)
    return parser
