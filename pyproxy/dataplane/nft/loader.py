"""Loading base rules through nft, and comparing them with the kernel's."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import threading
from contextlib import closing
from typing import NoReturn

from pyproxy.dataplane.nft.base_rules import BaseRules, Layout
from pyproxy.dataplane.nft.readback import read_tables
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    RejectedError,
    StaleStateError,
    UsageError,
)
from pyproxy.netlink import element_counters, nftables
from pyproxy.netlink.kernel_errors import kernel_error
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM

log = logging.getLogger(__name__)

_CLONE_NEWNET = 0x40000000


def require_nft() -> None:
    """Raise UsageError where the program nft is missing."""
    if shutil.which("nft") is None:
        raise UsageError("nft is not on PATH: install the package nftables")


def read_layout(netlink: Nfnetlink, table: str) -> Layout:
    """Read chains, rules and sets; all empty where there is no table. Raises KernelError."""
    found = nftables.read_chains(netlink.dump(nftables.get_chains()), table)
    if not found:
        return Layout({}, {}, {})
    return Layout(
        found,
        nftables.read_rules(netlink.dump(nftables.get_rules(table))),
        nftables.read_sets(netlink.dump(nftables.get_sets(table))),
    )


def load(netlink: Nfnetlink, base: BaseRules) -> None:
    """Load the base rules and keep every element; `seal` must follow.

    A table whose sets have other types, or count where these do not, is replaced, and
    StaleStateError says that its elements are gone. Raises KernelError.
    """
    present = read_layout(netlink, base.table)
    if present.sets and _counts(netlink, base) != bool(base.counted):
        log.info("replacing table inet %s: endpoint counters were switched", base.table)
        _replace(netlink, base)
    try:
        run_nft(base.text(present.chains))
    except RejectedError as error:
        if base.table not in read_tables(netlink):
            raise
        log.warning("replacing table inet %s: cannot update it: %s", base.table, error)
        _replace(netlink, base)


def seal(netlink: Nfnetlink, base: BaseRules) -> None:
    """Delete strays, which no element refers to any more, and write the seal.

    Strays that the kernel does not delete are sealed with the rest, so that deletion is tried
    once. Raises KernelError.
    """
    table = base.table
    if strays := base.strays(read_layout(netlink, table)):
        refusals = netlink.transact(base.removal(strays), SUBSYSTEM)
        if refusals:
            error = refusals[0].error
            log.warning("cannot delete from table inet %s: %s: %s", table, strays, error)
        else:
            log.info("deleted from table inet %s: %s", table, strays)
    for refusal in netlink.transact(base.sealing(read_layout(netlink, table)), SUBSYSTEM):
        raise refusal.error


def check_base_rules(netlink: Nfnetlink, base: BaseRules) -> tuple[str, ...]:
    """Name the changes that would restore the base rules; empty where all is right; KernelError."""
    layout = read_layout(netlink, base.table)
    if base.is_loaded(layout):
        return ()
    try:
        found = tuple(base.differences(layout, reference_ruleset(base)))
    except PermissionKernelError:
        return ("the base rules have changed since they were loaded (CAP_SYS_ADMIN names them)",)
    return found or ("the base rules belong to other flags, or to another version",)


def reference_ruleset(base: BaseRules) -> Layout:
    """Load the base rules into a network namespace of their own and read them back.

    Takes CAP_SYS_ADMIN, which the agent does without. Raises KernelError.
    """
    found: list[Layout] = []
    failures: list[KernelError] = []

    def visit() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            # unshare affects this thread alone; the namespace is freed when the thread ends.
            if libc.unshare(_CLONE_NEWNET):
                number = ctypes.get_errno()
                raise kernel_error(number, f"a network namespace: {os.strerror(number)}")
            with closing(Nfnetlink()) as netlink:
                load(netlink, base)
                found.append(read_layout(netlink, base.table))
        except KernelError as error:
            failures.append(error)

    thread = threading.Thread(target=visit, name="reference-ruleset")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return found[0]


def delete_table(netlink: Nfnetlink, table: str) -> None:
    """Delete a table; idempotent. Raises KernelError."""
    refusals = netlink.transact([nftables.delete_table(table)], SUBSYSTEM)
    if refusals and not isinstance(refusals[0].error, StaleStateError):
        raise refusals[0].error


def run_nft(text: str) -> None:
    """Run nft on these commands. Raises RejectedError, PermissionKernelError."""
    done = subprocess.run(
        ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = " ".join(done.stderr.split())
        kind = PermissionKernelError if "not permitted" in words else RejectedError
        raise kind(f"nft did not load the ruleset: {words[:500]}", 0)


def _counts(netlink: Nfnetlink, base: BaseRules) -> bool:
    found = element_counters.read_counted_sets(netlink.dump(nftables.get_sets(base.table)))
    return not found.isdisjoint(base.kinds)


def _replace(netlink: Nfnetlink, base: BaseRules) -> NoReturn:
    # In a transaction of its own: nft 1.0.6 checks new text against the sets that it deletes.
    delete_table(netlink, base.table)
    run_nft(base.text())
    raise StaleStateError("the table was replaced, with all elements gone", 0)
