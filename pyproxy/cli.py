"""The command `pyproxy`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyproxy import logs, output_pipes
from pyproxy.commands import registry
from pyproxy.config import Settings, command_line
from pyproxy.config.command_line import Parser, Task
from pyproxy.errors import PermissionKernelError, PyproxyError, UsageError
from pyproxy.redaction import KNOWN

log = logging.getLogger(__name__)

_COMMANDS = {
    "run": "proxy this node's Services until SIGTERM",
    "cleanup": "remove all objects of pyproxy from the kernel",
    **{name: entry.help for name, entry in registry.COMMANDS.items()},
    "lab": "run network namespaces, pods and a small API server to try pyproxy",
    "bench": "measure pyproxy and other proxies from outside",
}

STATUSES = {
    "run": (
        "0 stopped by SIGTERM or SIGINT; the rules stay and serve",
        "1 the kernel failed during the start, or an unexpected failure ended the agent",
        "2 a wrong flag or file, no permission, or a mode that this machine lacks",
    ),
    "cleanup": (
        "0 all objects are removed",
        "1 an object could not be removed, or a setting could not be restored",
        "2 wrong arguments, or no permission",
    ),
}
"""The exit statuses of the commands with kube-proxy's flags, for --help."""

_LAB_COMMANDS = ("lab", "bench")
"""Commands that the distribution pyproxy-lab adds by entry points."""

_COMMANDS_GROUP = "pyproxy.commands"
"""Each entry point of this group is a module with `add_arguments(parser)` and `run(namespace)`."""


KUBE_PROXY_FLAGS = ("--takeover", "--proxy-mode=")
"""The flags that the command `kube-proxy` has by default. Without a mode, node ports are on the
addresses of kube-proxy's default mode."""


def kube_proxy(argv: Sequence[str] | None = None) -> int:
    """Run the command `kube-proxy`, which has the flags of `pyproxy run` and no subcommands.

    An installation under that name replaces kube-proxy, so `--takeover` is the default.
    """
    return main(["run", *KUBE_PROXY_FLAGS, *(sys.argv[1:] if argv is None else argv)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for a mistake that the user must fix."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return output_pipes.run(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    try:
        if arguments == ["--version"]:
            arguments = ["version"]
        if arguments and arguments[0] in _LAB_COMMANDS:
            return _lab(arguments[0], arguments[1:])
        if arguments and arguments[0] in registry.COMMANDS:
            return registry.run(arguments[0], arguments[1:])
        return _command(arguments)
    except (UsageError, PermissionKernelError) as error:
        print(KNOWN.redact(f"pyproxy: {error}"), file=sys.stderr)
        return 2
    except PyproxyError as error:
        print(KNOWN.redact(f"pyproxy: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells report it


def _command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in {*_COMMANDS, "-h", "--help"}:
        first = f"{arguments[0]!r} is not a command" if arguments else "no command is given"
        raise UsageError(f"{first}: use one of {', '.join(_COMMANDS)}")
    namespace, unknown = _parser().parse_known_args(list(command_line.go_style(arguments)))
    if unknown:
        command_line.refuse_unknown(unknown[0])
    task = command_line.asks_for(namespace)
    if task is Task.VERSION:
        from pyproxy.commands import version  # noqa: PLC0415

        print(version.kube_proxy(command_line.version_request(namespace)))
        return 0
    task = Task.CLEANUP if namespace.command == "cleanup" else task
    settings = command_line.settings(namespace)
    if task is Task.WRITE_CONFIG:
        return _write_config(settings, command_line.write_config_to(namespace))
    _prepare_logs(settings)
    # Imports the agent's libraries, which --help does without.
    from pyproxy.agent import gc_tuning  # noqa: PLC0415

    with gc_tuning.rare():
        return _do(task, settings, namespace)


def _do(task: Task, settings: Settings, namespace: argparse.Namespace) -> int:
    from pyproxy.agent import gc_tuning, wiring  # noqa: PLC0415
    from pyproxy.agent.shutdown import ShutdownSignal  # noqa: PLC0415

    # Otherwise a collection would walk them when the first responses arrive.
    gc_tuning.exempt()
    if task is Task.CLEANUP:
        return wiring.cleanup(settings)
    if task is Task.INITIALIZE:
        return wiring.initialize(settings)
    # Flags stay as they are; each call reads the file of --config again.
    read = partial(command_line.settings, namespace)
    with ShutdownSignal() as shutdown:
        changed = wiring.run(settings, read, shutdown)
        while changed is not None and not shutdown.received:
            _prepare_logs(changed)
            changed = wiring.run(changed, read, shutdown)
    return 0


def _prepare_logs(settings: Settings) -> None:
    logs.configure(settings.verbosity, settings.log_format)
    for remark in settings.remarks:
        log.warning("%s", remark)


def _write_config(settings: Settings, path: str) -> int:
    from pyproxy.config.file import yaml_text  # noqa: PLC0415

    try:
        Path(path).write_text(yaml_text(settings.configuration))
    except OSError as error:
        raise UsageError(
            f"--write-config-to {path}: cannot be written: {error.strerror}"
        ) from error
    print(f"wrote the configuration to {path}", file=sys.stderr)
    return 0


def _lab(name: str, arguments: Sequence[str]) -> int:
    """Run a command of the distribution pyproxy-lab. Raises UsageError if it is not installed."""
    # Takes a fifth of this command's imports, and no other command needs it.
    from importlib.metadata import entry_points  # noqa: PLC0415

    found = tuple(entry_points(group=_COMMANDS_GROUP, name=name))
    if not found:
        raise UsageError(f"{name}: pyproxy-lab is not installed: run pip install pyproxy-lab")
    command = found[0].load()
    parser = Parser(f"pyproxy {name}", description=_COMMANDS[name], allow_abbrev=False)
    command.add_arguments(parser)
    status: int = command.run(parser.parse_all(arguments))
    return status


def _parser() -> Parser:
    parser = Parser("pyproxy", description="A Service proxy for Kubernetes nodes.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, purpose in _COMMANDS.items():
        # Go's flags have no abbreviations, and a later flag could make one ambiguous.
        command = commands.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        if name in {"run", "cleanup"}:
            command_line.add_flags(command)
            command.epilog = "exit statuses: " + "; ".join(STATUSES[name])
    return parser
