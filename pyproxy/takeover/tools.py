"""Reading and writing iptables through its own programs.

iptables-save and iptables-restore come in two flavours, each of which sees its own rules alone.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

from pyproxy.errors import KernelError, PermissionKernelError, RejectedError, TransientKernelError
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.takeover import iptables
from pyproxy.takeover.leftovers import (
    Failure,
    InService,
    IptablesRemoval,
    Leftovers,
    Program,
)

log = logging.getLogger(__name__)

PROGRAMS = tuple(Program(family, flavour) for family in Family for flavour in Flavour)
_LEGACY_TABLES = {
    Family.IPV4: Path("/proc/thread-self/net/ip_tables_names"),
    Family.IPV6: Path("/proc/thread-self/net/ip6_tables_names"),
}
_LOCK_SECONDS = "5"
_RESOURCE_PROBLEM = 4
"""The status of a program that waited for iptables' lock in vain."""


def find_rules(program: Program, owns: iptables.Owns) -> tuple[IptablesRemoval, ...]:
    """Find what is to go from all tables that a program sees. Raises KernelError."""
    return tuple(
        IptablesRemoval(program, removal)
        for saved in iptables.parse(_save(program))
        if (removal := iptables.removal(saved, owns))
    )


def find_own_rules(in_service: InService) -> Leftovers:
    """Find the rules that pyproxy's own iptables mode has left, and that serve no more."""
    found: list[IptablesRemoval] = []
    unread: list[Failure] = []
    for program in PROGRAMS:
        if program.flavour is not in_service.flavour:
            try:
                found += _own_rules(program)
            except KernelError as error:
                unread.append(Failure(f"rules of {program}", error))
    return Leftovers(iptables=tuple(found), unread=tuple(unread))


def _own_rules(program: Program) -> tuple[IptablesRemoval, ...]:
    if shutil.which(f"{program}-save") is None:  # then pyproxy has not run it either
        return ()
    if program.flavour is Flavour.LEGACY and not _has_legacy_tables(program.family):
        return ()
    tables = iptables.parse(_save(program))
    return tuple(IptablesRemoval(program, each) for each in iptables.own_removals(tables))


def remove_rules(found: IptablesRemoval) -> None:
    """Take out what was found in one table, all of it or nothing. Raises KernelError."""
    _run([f"{found.program}-restore", "--noflush", "--wait", _LOCK_SECONDS], found.removal.script())


def _save(program: Program) -> str:
    command = f"{program}-save"
    if shutil.which(command) is not None:
        return _run([command])
    if program.flavour is Flavour.NFT or _has_legacy_tables(program.family):
        log.warning(
            "%s is not on PATH: rules that kube-proxy may have left there are not found and stay: "
            "install the package iptables",
            command,
        )
    return ""


def has_legacy_rules() -> bool:
    """Tell whether iptables-legacy has been in use here."""
    return any(map(_has_legacy_tables, Family))


def _has_legacy_tables(family: Family) -> bool:
    try:
        return bool(_LEGACY_TABLES[family].read_text().strip())
    except OSError:  # the kernel has no such iptables
        return False


def _run(command: list[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    words = f"{command[0]}: {' '.join(done.stderr.split())[:500]}"
    if "ermission denied" in words or "not permitted" in words:
        raise PermissionKernelError(f"{words}: it needs CAP_NET_ADMIN and CAP_NET_RAW", 0)
    kind: type[KernelError] = RejectedError
    if done.returncode == _RESOURCE_PROBLEM:
        kind = TransientKernelError
    raise kind(words, 0)
