"""`pyproxy lab`: the commands of the lab."""

from __future__ import annotations

import argparse

from pyproxy_lab import modes
from pyproxy_lab.apiserver import command as apiserver

_DEMO = "a Service followed from its first packet, in network namespaces; needs root"
_APISERVER = "a small API server that speaks the Kubernetes protocol, in memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the lab's own commands and their flags."""
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)
    demo = commands.add_parser("demo", help=_DEMO, description=_DEMO, allow_abbrev=False)
    demo.add_argument(
        "--mode",
        choices=tuple(modes.MODES),
        default=modes.NFTABLES.name,
        help="the proxy mode (default nftables)",
    )
    apiserver.add_arguments(
        commands.add_parser(
            "apiserver", help=_APISERVER, description=_APISERVER, allow_abbrev=False
        )
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one of the commands and give its exit status.

    Raises LabError where something did not hold.
    """
    if arguments.lab_command == "apiserver":
        return apiserver.run(arguments)
    # The demo imports libraries that the API server should not wait for.
    from pyproxy_lab import demo  # noqa: PLC0415

    return demo.run(modes.named(arguments.mode))
