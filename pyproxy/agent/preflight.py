"""Which proxy modes this machine could serve in, and what the others lack.

Nothing is written for it. A module that is there but not loaded counts, for the kernel loads it
when it is first needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from pyproxy.config.modes import ProxyMode
from pyproxy.dataplane.nft.readback import read_tables
from pyproxy.errors import KernelError
from pyproxy.netlink.nfnetlink import Nfnetlink

_TOOLS = {
    ProxyMode.NFTABLES: {"nft": "nftables"},
    ProxyMode.IPTABLES: {"iptables-restore": "iptables", "ip6tables-restore": "iptables"},
    ProxyMode.IPVS: {"nft": "nftables"},
}
"""The programs that each mode runs, and the packages that have them."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether a mode would work here: it does where `lacks` is empty."""

    mode: ProxyMode
    lacks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.mode.value}: {'no, ' + ', '.join(self.lacks) if self.lacks else 'yes'}"


class Preflight:
    """Looks at the machine below `root`, which is / on a machine.

    `which` finds programs, and `nf_tables` says what is wrong with the kernel's nf_tables, "" for
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
        """Judge every mode."""
        nf_tables = self._nf_tables()
        return tuple(Verdict(mode, tuple(self._lacks(mode, nf_tables))) for mode in ProxyMode)

    def __str__(self) -> str:
        return "; ".join(map(str, self.verdicts()))

    def _lacks(self, mode: ProxyMode, nf_tables: str) -> Iterator[str]:
        for tool, package in _TOOLS[mode].items():
            if self._which(tool) is None:
                yield f"{tool} is not on PATH (package {package})"
        if mode is ProxyMode.NFTABLES and nf_tables:
            yield nf_tables
        if mode is ProxyMode.IPTABLES and not self._has("ip_tables", "proc/net/ip_tables_names"):
            # The programs' newer flavour writes the same rules to nf_tables.
            yield from [f"the kernel has no ip_tables, and {nf_tables}"] if nf_tables else []
        if mode is ProxyMode.IPVS:
            if not self._has("ip_vs", "proc/net/ip_vs"):
                yield "the kernel has no ip_vs"
            if nf_tables:
                yield nf_tables

    def _has(self, module: str, shown: str) -> bool:
        """Tell whether a part of the kernel is there: what it shows in /proc, or its module."""
        return (self._root / shown).exists() or any(
            f"/{module}.ko" in self._text(f"lib/modules/{self._release()}/modules.{kind}")
            for kind in ("builtin", "dep")
        )

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
        return f"nf_tables cannot be asked: {error}"
    try:
        read_tables(netlink)
    except KernelError as error:
        return f"nf_tables does not answer: {error}"
    finally:
        netlink.close()
    return ""
