"""Check which proxy modes this machine can serve in, and which requirements the others miss.

It only reads. A kernel module that exists but is not loaded meets a requirement, because the kernel
loads it at its first use.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from pyproxy.dataplane.mode import NF_TABLES, KernelPart, Mode
from pyproxy.dataplane.modes import MODES
from pyproxy.errors import KernelError
from pyproxy.netlink import nftables
from pyproxy.netlink.nfnetlink import Nfnetlink


class Verdict(msgspec.Struct, frozen=True):
    """Whether a mode can serve here: it can if `lacks` is empty."""

    mode: str
    lacks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.mode}: {'no, ' + ', '.join(self.lacks) if self.lacks else 'yes'}"


class Preflight:
    """Checks the machine below `root`, which is / outside of tests.

    `which` finds programs. `nf_tables` returns what is wrong with the kernel's nf_tables, empty for
    nothing.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        which: Callable[[str], str | None] = shutil.which,
        nf_tables: Callable[[], str] | None = None,
    ) -> None:
        self._root = root
        self._which = which
        self._nf_tables = nf_tables or _ask_nf_tables

    def verdicts(self) -> tuple[Verdict, ...]:
        """Check every mode. Blocks for a request to the kernel."""
        nf_tables = self._nf_tables()
        return tuple(
            Verdict(mode.name, tuple(self._lacks(mode, nf_tables))) for mode in MODES.values()
        )

    def __str__(self) -> str:
        return "; ".join(map(str, self.verdicts()))

    def _lacks(self, mode: Mode, nf_tables: str) -> Iterator[str]:
        for tool, package in mode.programs.items():
            if self._which(tool) is None:
                yield f"{tool} is not on PATH (package {package})"
        for group in mode.kernel_parts:
            lacks = [self._lack(part, nf_tables) for part in group]
            # The parts of a group are alternatives: one that is there suffices.
            if all(lacks):
                yield ", and ".join(lacks)

    def _lack(self, part: KernelPart, nf_tables: str) -> str:
        """Return what is wrong with a kernel part; empty if it or its module is there."""
        if part == NF_TABLES:
            return nf_tables
        # modules.builtin lists what is compiled into the kernel, modules.dep the loadable modules;
        # their file may be compressed, such as ip_vs.ko.xz.
        there = (self._root / part.shown).exists() or any(
            f"/{part.module}.ko" in self._text(f"lib/modules/{self._release()}/modules.{kind}")
            for kind in ("builtin", "dep")
        )
        return "" if there else f"the kernel has no {part.module}"

    def _release(self) -> str:
        return self._text("proc/sys/kernel/osrelease").strip()

    def _text(self, path: str) -> str:
        try:
            return (self._root / path).read_text()
        except OSError:
            return ""


def _ask_nf_tables() -> str:
    try:
        netlink = Nfnetlink()
    except KernelError as error:
        return f"cannot open a netlink socket: {error}"
    # The kernel loads the module nf_tables when the first message for it arrives, so only a request
    # shows whether it is available.
    try:
        nftables.read_table_names(netlink.dump(nftables.get_tables()))
    except KernelError as error:
        return f"cannot read nf_tables: {error}"
    finally:
        netlink.close()
    return ""
