"""The options of a lab, from the command line."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import msgspec

from pyproxy.errors import UsageError
from pyproxy.model.address import Family
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import HAS_IPV6
from pyproxy_lab.topology import Topology, nodes_alone

MOST_NODES = 10

_MODE = "--proxy-mode"


class Options(msgspec.Struct, frozen=True):
    """`proxy` is the command of another proxy, empty for pyproxy; `page` serves pyproxy's page."""

    folder: Path
    mode: LabMode
    nodes: int = 2
    dual_stack: bool = False
    proxy: tuple[str, ...] = ()
    page: bool = False

    @property
    def topology(self) -> Topology:
        """The network without pods."""
        families = (Family.IPV4, Family.IPV6) if self.dual_stack else (Family.IPV4,)
        return nodes_alone(self.nodes, families)


def check(options: Options) -> None:
    """Raise UsageError for options that no lab can have."""
    if not 1 <= options.nodes <= MOST_NODES:
        raise UsageError(f"--nodes {options.nodes}: give a number from 1 to {MOST_NODES}")
    if options.dual_stack and not HAS_IPV6:
        raise UsageError("--dual-stack: this kernel has no IPv6: leave the flag out")
    if not options.mode.is_available:
        raise UsageError(f"--mode {options.mode.name}: this kernel lacks it: use another mode")
    if options.proxy and options.page:
        raise UsageError("--page: only pyproxy has a page: leave out --page or --proxy")


def proxy_command(text: str, mode: LabMode) -> tuple[str, ...]:
    """Split the command of `--proxy`, and add the mode if it names none. Raises UsageError."""
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--proxy {text}: {error}: mend the quotes") from error
    program = shutil.which(command[0]) if command else None
    if program is None:
        raise UsageError(f"--proxy {text}: not a program that can be run: give its path")
    named = any(word == _MODE or word.startswith(f"{_MODE}=") for word in command)
    return (program, *command[1:], *(() if named else mode.flags[:1]))
