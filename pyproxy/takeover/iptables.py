"""Find and remove the iptables rules of kube-proxy, and of pyproxy's own iptables mode."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pyproxy.errors import KernelError
from pyproxy.model.address import Family
from pyproxy.model.flavour import Flavour
from pyproxy.takeover.leftovers import Failure, InService, IptablesRemoval, Leftovers
from pyproxy.xtables import programs
from pyproxy.xtables.programs import Programs, has_legacy_tables
from pyproxy.xtables.removal import Owns, plan_own_removal, plan_removal
from pyproxy.xtables.saved import SavedTable

log = logging.getLogger(__name__)


def find_rules(program: Programs, owns: Owns) -> tuple[IptablesRemoval, ...]:
    """Return what is to be removed from all tables of a program. Raises KernelError."""
    return tuple(
        IptablesRemoval(program, removal)
        for name, saved in _save(program).items()
        if (removal := plan_removal(name, saved, owns))
    )


def find_own_rules(in_service: InService) -> Leftovers:
    """Return the rules that pyproxy's iptables mode has left and that are not in service."""
    found: list[IptablesRemoval] = []
    unread: list[Failure] = []
    for program in programs.ALL:
        # Rules in service are the dataplane's: it deletes those that it no longer wants.
        if program.flavour is not in_service.flavour:
            try:
                found += _own_rules(program)
            except KernelError as error:
                unread.append(Failure(f"rules of {program}", error))
    return Leftovers(iptables=tuple(found), unread=tuple(unread))


def remove_rules(found: IptablesRemoval) -> None:
    """Remove what was found in one table, in one transaction. Raises KernelError."""
    found.program.restore(found.removal.script())


def has_legacy_rules() -> bool:
    """Return whether iptables-legacy has been used in this network namespace."""
    return any(map(has_legacy_tables, Family))


def _own_rules(program: Programs) -> tuple[IptablesRemoval, ...]:
    # Without the program pyproxy cannot have written rules either.
    if not program.is_installed() or not _may_have_rules(program):
        return ()
    return tuple(IptablesRemoval(program, each) for each in plan_own_removal(program.save()))


def _save(program: Programs) -> Mapping[str, SavedTable]:
    if program.is_installed():
        return program.save()
    if _may_have_rules(program):
        log.warning(
            "%s-save is not on PATH: kube-proxy's rules there, if any, are not found and stay; "
            "install the package iptables",
            program,
        )
    return {}


def _may_have_rules(program: Programs) -> bool:
    # iptables-legacy-save itself lists nothing without legacy tables; nft tables have no such file.
    return program.flavour is Flavour.NFT or has_legacy_tables(program.family)
