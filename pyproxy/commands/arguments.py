"""Arguments that commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pyproxy.config import flags
from pyproxy.config.given import FLAGS
from pyproxy.errors import UsageError

_SHOWN = {
    flags.INSPECT_SOCKET.name,
    flags.KUBECONFIG.name,
    flags.MASTER.name,
    flags.MANIFESTS.name,
    flags.CONFIG.name,
    flags.HOSTNAME_OVERRIDE.name,
    flags.PROXY_MODE.name,
}
_FORMATS = ("table", "json", "yaml")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Declare whom to ask: the agent, or API and kernel with the flags of `pyproxy run`."""
    group = parser.add_argument_group(
        "whom to ask",
        "The agent on this node, through its socket. Where none answers, the API server and the "
        "kernel are read here, with the flags of pyproxy run that are given.",
    )
    group.add_argument(
        "--no-agent", action="store_true", help="read API and kernel even where an agent answers"
    )
    for flag in FLAGS:
        group.add_argument(
            flag.name,
            dest=flag.name,
            action="append",
            metavar="VALUE",
            help=flag.help.replace("%", "%%") if flag.name in _SHOWN else argparse.SUPPRESS,
        )


def add_output(parser: argparse.ArgumentParser, formats: Sequence[str] = _FORMATS) -> None:
    """Declare `-o`; the first format is the default."""
    parser.add_argument(
        "-o",
        "--output",
        default=formats[0],
        choices=formats,
        help=f"{' or '.join(formats)}; {formats[0]} where it is not given",
    )


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Declare `--watch`."""
    parser.add_argument(
        "--watch",
        nargs="?",
        const=2.0,
        type=_seconds,
        metavar="SECONDS",
        help="show it again every so many seconds (2) until Ctrl-C",
    )


def output_of(namespace: argparse.Namespace) -> Callable[[msgspec.Struct], str] | None:
    """Give what writes a value as `-o` asks for, None for tables."""
    formats: dict[str, Callable[[Any], str]] = {"json": _json, "yaml": _yaml}
    return formats.get(namespace.output)


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _yaml(value: Any) -> str:
    return msgspec.yaml.encode(value).decode().rstrip()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise UsageError(f"--watch: {text!r} is not between 0.1 and 3600 seconds")
    return seconds
