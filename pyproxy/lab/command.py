"""`pyproxy lab`: the commands of the lab."""

from __future__ import annotations

import argparse

from pyproxy.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the lab's own commands and their flags."""
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)
    demo = "a Service followed from its first packet, in network namespaces; needs root"
    commands.add_parser("demo", help=demo, description=demo, allow_abbrev=False)
    serve = "a small API server that speaks the Kubernetes protocol, in memory"
    apiserver = commands.add_parser("apiserver", help=serve, description=serve, allow_abbrev=False)
    apiserver.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:8001",
        help="where to listen (default: %(default)s)",
    )
    apiserver.add_argument(
        "--token", default="", help="the bearer token that every request must carry"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one of the commands and give its exit status.

    Raises UsageError for what a person must put right, LabError where something did not hold.
    """
    # Each brings libraries with it that the others should not wait for.
    if arguments.lab_command == "demo":
        from pyproxy.lab import demo  # noqa: PLC0415

        return demo.run()
    from pyproxy.lab.apiserver import server  # noqa: PLC0415

    return server.serve(_host_port(arguments.listen), arguments.token)


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {text}: write HOST:PORT")
    return host.strip("[]"), int(port)
