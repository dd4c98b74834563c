"""Commands of the plugin: arguments, run, exit statuses, and the table of all of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import msgspec

from pyproxy.commands.registry import Entry
from pyproxy.errors import NO_RESPONSE

STATUSES = (
    "2 wrong arguments, or no permission",
    f"{NO_RESPONSE} the API server did not respond",
    "130 stopped by Ctrl-C",
)


class Command(msgspec.Struct, frozen=True):
    """A command; `run` returns its exit status, `statuses` are lines for --help.

    `run` gets the arguments that the plugin does not know, and forwards them to the agent's
    command. A command without `forwards` gets none.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Sequence[str]], int]
    statuses: tuple[str, ...] = ("0 success",)
    forwards: bool = False


COMMANDS: Mapping[str, Entry[Command]] = {
    "status": Entry("show the agents of all nodes", "pyproxy.kubectl.status"),
    "explain": Entry(
        "check a Service step by step on all nodes, and group equal answers",
        "pyproxy.kubectl.explain",
    ),
    "services": Entry("list Service ports, and the nodes that differ", "pyproxy.kubectl.services"),
    "diff": Entry("compare desired state and kernel state on all nodes", "pyproxy.kubectl.diff"),
    "top": Entry(
        "show new connections per second by Service, summed over all nodes", "pyproxy.kubectl.top"
    ),
    "trace": Entry("trace a packet on one node", "pyproxy.kubectl.trace"),
    "check": Entry(
        "test connections through Services of each kind, with pods on all nodes",
        "pyproxy.kubectl.check.command",
    ),
}
