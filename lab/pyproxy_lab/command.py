"""`pyproxy lab`: the commands of the lab."""

from __future__ import annotations

import argparse

from pyproxy_lab import modes
from pyproxy_lab.apiserver import command as apiserver
from pyproxy_lab.up import command as lab

_UP = "a cluster of network namespaces for kubectl, until Ctrl-C; needs root"
_DOWN = "end the lab that is up, and remove what a killed one has left; needs root"
_ENV = "print the shell command that sets KUBECONFIG to the lab's"
_DEMO = "a Service followed from its first packet, in network namespaces; needs root"
_APISERVER = "a small API server that speaks the Kubernetes protocol, in memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the lab's own commands and their flags."""
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)
    for name, text, add in (
        ("up", _UP, lab.add_up_arguments),
        ("down", _DOWN, lab.add_down_arguments),
        ("env", _ENV, lab.add_env_arguments),
    ):
        add(commands.add_parser(name, help=text, description=text, allow_abbrev=False))
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
    simple = {"up": lab.up, "down": lab.down, "env": lab.env, "apiserver": apiserver.run}
    if arguments.lab_command in simple:
        return simple[arguments.lab_command](arguments)
    # The demo imports libraries that the API server should not wait for.
    from pyproxy_lab import demo  # noqa: PLC0415

    return demo.run(modes.named(arguments.mode))
