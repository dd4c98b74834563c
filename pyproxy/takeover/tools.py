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
from pyproxy.takeover import iptables
from pyproxy.takeover.iptables import Flavour
from pyproxy.takeover.leftovers import IptablesRemoval

log = logging.getLogger(__name__)

_PROGRAMS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_LEGACY_TABLES = {
    Family.IPV4: Path("/proc/net/ip_tables_names"),
    Family.IPV6: Path("/proc/net/ip6_tables_names"),
}
_LOCK_SECONDS = "5"
_RESOURCE_PROBLEM = 4
"""The status of a program that waited for iptables' lock in vain."""


def find_rules() -> tuple[IptablesRemoval, ...]:
    """Read all tables of both families and flavours. Raises KernelError."""
    return tuple(
        IptablesRemoval(family, flavour, removal)
        for family in Family
        for flavour in Flavour
        for saved in iptables.parse(_save(family, flavour))
        if (removal := iptables.removal(saved))
    )


def remove_rules(found: IptablesRemoval) -> None:
    """Take out what was found in one table, all of it or nothing. Raises KernelError."""
    program = f"{_PROGRAMS[found.family]}-{found.flavour.value}-restore"
    _run([program, "--noflush", "--wait", _LOCK_SECONDS], found.removal.script())


def _save(family: Family, flavour: Flavour) -> str:
    program = f"{_PROGRAMS[family]}-{flavour.value}-save"
    if shutil.which(program) is not None:
        return _run([program])
    if flavour is Flavour.LEGACY and not _has_legacy_tables(family):
        return ""
    log.warning(
        "%s is not on PATH: rules that kube-proxy has left in %s iptables are not found and stay: "
        "install the package iptables",
        program,
        flavour.value,
    )
    return ""


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
    kind: type[KernelError] = RejectedError
    if done.returncode == _RESOURCE_PROBLEM:
        kind = TransientKernelError
    elif "ermission denied" in words or "not permitted" in words:
        kind = PermissionKernelError
    raise kind(words, 0)
