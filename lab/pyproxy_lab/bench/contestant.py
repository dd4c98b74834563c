"""The programs to measure: this pyproxy, or any program that takes kube-proxy's flags."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pyproxy.errors import UsageError
from pyproxy_lab import modes
from pyproxy_lab.bench.shape import NODE_NAME, POD_NETWORK
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import LabError, Namespace
from pyproxy_lab.process import Agent, proxy_flags

OURS = "pyproxy"

_MODE = "--proxy-mode"


class Contestant(msgspec.Struct, frozen=True):
    """A name for the tables, and the command that serves, all flags of its own included."""

    name: str
    command: tuple[str, ...]

    @property
    def mode(self) -> str:
        """The proxy mode of the command's flags."""
        flag = _MODE + "="
        for each, following in zip(self.command, (*self.command[1:], ""), strict=True):
            if each == _MODE:
                return following
            if each.startswith(flag):
                return each.removeprefix(flag)
        return ""

    @property
    def announces(self) -> bool:
        """Whether nf_tables notifies of all that it writes."""
        return self.mode in modes.MODES and modes.MODES[self.mode].announced

    @contextmanager
    def serving(self, node: Namespace, kubeconfig: Path, log: Path) -> Iterator[Agent]:
        """Run it inside, and remove its rules at the end. Raises LabError."""
        command = [*self.command, *proxy_flags(NODE_NAME, POD_NETWORK, kubeconfig)]
        try:
            with Agent(node, command, log) as agent:
                yield agent
                agent.require_alive()
        finally:
            cleanup = [*self.command, "--cleanup"]
            done = subprocess.run(cleanup, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LabError(f"{shlex.join(cleanup)}: {done.stderr[-500:]}")


def parse(text: str, mode: LabMode) -> Contestant:
    """Read `NAME=COMMAND`, or `pyproxy` for this one. Raises UsageError.

    `mode` is added to a command without a proxy mode; pyproxy alone gets the iptables flavour.
    """
    name, _, given = text.partition("=")
    command = shlex.split(given)
    if not command:
        if name != OURS:
            raise UsageError(f"--agent {text}: name its program: --agent {text}=PATH")
        command = [sys.executable, "-m", "pyproxy", "run"]
    program = shutil.which(command[0])
    if program is None:
        raise UsageError(f"--agent {text}: {command[0]} is not a program that can be run")
    found = Contestant(name, (program, *command[1:]))
    if not found.mode:
        flags = mode.flags if name == OURS else mode.flags[:1]
        found = Contestant(name, (*found.command, *flags))
    return found
