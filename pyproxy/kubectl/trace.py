"""`kubectl pyproxy trace`: run `pyproxy trace` on one node, and print its output as it arrives."""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Sequence
from typing import TextIO

from pyproxy.errors import UsageError
from pyproxy.kubectl.agents import find_agents
from pyproxy.kubectl.ask import printable
from pyproxy.kubectl.command import Command
from pyproxy.kubectl.options import SELECTORS, Options, add_options, connect
from pyproxy.kubectl.rights import required
from pyproxy.source.pod_exec import STDOUT, PodExec
from pyproxy.source.websocket import Deadline


class _Printer:
    """Prints bytes of a node as text, without control characters."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        # A character may be split between two parts.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def print(self, data: bytes) -> None:
        self._file.write(printable(self._decoder.decode(data)))
        self._file.flush()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --node NODE --to ADDRESS:PORT [arguments of pyproxy trace]"
    add_options(parser, one_node=True)


def _run(namespace: argparse.Namespace, rest: Sequence[str]) -> int:
    client = connect(namespace)
    chosen = Options(
        namespace.agent_namespace,
        (namespace.selector,) if namespace.selector else SELECTORS,
        (namespace.node,),
        timeout=0.0,
        parallel=1,
    )
    (agent,) = find_agents(client, chosen)
    if agent.container is None:
        raise UsageError(f"--node {agent.node}: {agent.problem}")
    # A node does not end a command whose client is gone, but the command's input ends then.
    command = ("pyproxy", "trace", "--require-agent", "--until-input-ends", *rest)
    printers = {True: _Printer(sys.stdout), False: _Printer(sys.stderr)}
    with (
        required(),
        PodExec(client, agent.container, command, Deadline(None), stdin=True) as trace,
    ):
        for channel, data in trace.output():
            printers[channel == STDOUT].print(data)
        return trace.exit_status()


COMMAND = Command(
    _add_arguments,
    _run,
    ("the exit status of pyproxy trace",),
    forwards=True,
)
