"""The program `kubectl-pyproxy`, which kubectl runs as `kubectl pyproxy`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pyproxy import output_pipes
from pyproxy.config.command_line import Parser
from pyproxy.errors import NO_RESPONSE, PyproxyError, UsageError
from pyproxy.interrupts import interrupted_by
from pyproxy.kubectl.command import COMMANDS, STATUSES
from pyproxy.redaction import KNOWN


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return output_pipes.run(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    try:
        return _command(arguments)
    except UsageError as error:
        print(KNOWN.redact(f"kubectl pyproxy: {error}"), file=sys.stderr)
        return 2
    except PyproxyError as error:
        print(KNOWN.redact(f"kubectl pyproxy: {error}"), file=sys.stderr)
        return NO_RESPONSE
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells report it


def _command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help"}:
        _help()
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        raise UsageError(f"{name!r} is not a command: use one of {', '.join(COMMANDS)}")
    entry = COMMANDS[name]
    command = entry.load()
    parser = Parser(f"kubectl pyproxy {name}", description=entry.help, allow_abbrev=False)
    parser.epilog = "exit statuses: " + "; ".join((*command.statuses, *STATUSES))
    command.add_arguments(parser)
    namespace, rest = parser.parse_known_args(arguments[1:])
    if rest and not command.forwards:
        raise UsageError(f"{name}: unknown argument {rest[0]!r}: see kubectl pyproxy {name} --help")
    with interrupted_by():
        return command.run(namespace, rest)


def _help() -> None:
    print("Ask the pyproxy agents of all nodes.\n\nusage: kubectl pyproxy COMMAND\n\ncommands:")
    for name, entry in COMMANDS.items():
        print(f"  {name:10}{entry.help}")
    print("\nkubectl pyproxy COMMAND --help lists a command's arguments.")
