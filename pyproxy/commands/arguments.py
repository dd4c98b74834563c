"""Arguments and output formats that commands share."""

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
    """Declare `--no-agent` and the flags of `pyproxy run`, most of them hidden in --help."""
    group = parser.add_argument_group(
        "source",
        "Commands query the agent on this node through its socket. Without an agent they read the "
        "API server and the kernel, with the flags of pyproxy run.",
    )
    group.add_argument(
        "--no-agent", action="store_true", help="read API server and kernel, not the agent"
    )
    group.add_argument(
        "--require-agent",
        action="store_true",
        help="fail if the agent does not respond, instead of reading API server and kernel",
    )
    for flag in FLAGS:
        group.add_argument(
            flag.name,
            dest=flag.name,
            action="append",
            metavar="VALUE",
            # argparse formats help texts with %.
            help=flag.help.replace("%", "%%") if flag.name in _SHOWN else argparse.SUPPRESS,
        )


def add_output(parser: argparse.ArgumentParser, formats: Sequence[str] = _FORMATS) -> None:
    """Declare `-o`; the first format is the default."""
    parser.add_argument(
        "-o",
        "--output",
        default=formats[0],
        choices=formats,
        help=f"output format: {', '.join(formats)} (default {formats[0]})",
    )


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Declare `--watch`."""
    parser.add_argument(
        "--watch",
        nargs="?",
        const=2.0,
        type=parse_seconds("--watch"),
        metavar="SECONDS",
        help="repeat every SECONDS (default 2) until Ctrl-C",
    )


def encoder(namespace: argparse.Namespace) -> Callable[[msgspec.Struct], str] | None:
    """Return the encoder that `-o` selects, None for tables."""
    formats: dict[str, Callable[[Any], str]] = {"json": _json, "yaml": _yaml}
    return formats.get(namespace.output)


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _yaml(value: Any) -> str:
    return msgspec.yaml.encode(value).decode().rstrip()


def parse_seconds(flag: str, low: float = 0.1, high: float = 3600.0) -> Callable[[str], float]:
    """Return a parser of a flag in seconds. The parser raises UsageError."""

    def parse(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        # `not <=` also rejects NaN, because all comparisons with it are false.
        if not low <= seconds <= high:
            raise UsageError(f"{flag}: {text!r} is not between {low:g} and {high:g} seconds")
        return seconds

    return parse


def parse_count(flag: str) -> Callable[[str], int]:
    """Return a parser of a flag that is a number from 0. The parser raises UsageError."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()):
            raise UsageError(f"{flag}: {text!r} is not a number from 0")
        return int(text)

    return parse
