"""Loading base rules through nft, and comparing them with the kernel's."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Collection
from contextlib import closing
from typing import NoReturn

from pyproxy.dataplane.nft.base_rules import BaseRules, Layout, Names
from pyproxy.dataplane.nft.readback import read_tables
from pyproxy.errors import (
    KernelError,
    PermissionKernelError,
    RejectedError,
    StaleStateError,
    UsageError,
)
from pyproxy.netlink import element_counters, nftables
from pyproxy.netlink.kernel_errors import kernel_error, program_error
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, get_generation, read_generation

log = logging.getLogger(__name__)

_CLONE_NEWNET = 0x40000000


def require_nft() -> None:
    """Raise UsageError where the program nft is missing."""
    if shutil.which("nft") is None:
        raise UsageError("nft is not on PATH: install the package nftables")


def read_layout(netlink: Nfnetlink, table: str) -> Layout:
    """Read a table; all is empty where there is none. Raises KernelError."""
    # The kernel filters dumps of rules and of sets by table, but not dumps of chains.
    found = nftables.read_chains(netlink.dump(nftables.get_chains()), table)
    if not found:
        return Layout({}, {}, {})
    return Layout(
        found,
        nftables.read_rules(netlink.dump(nftables.get_rules(table))),
        nftables.read_sets(netlink.dump(nftables.get_sets(table))),
        table in nftables.read_flagged_tables(netlink.dump(nftables.get_tables())),
    )


def begin_load(netlink: Nfnetlink, base: BaseRules) -> None:
    """Load the base rules and keep every element.

    Elements are written next, and then `load_rules` and `finish_load` are called. A table with
    other rules gets only what it lacks here, and its rules serve until the new sets are filled. A
    table is replaced if its sets have other types, or differ in whether they count. StaleStateError
    then means that its elements are gone. Raises KernelError.
    """
    present = read_layout(netlink, base.table)
    # A set's expressions are fixed when it is created: counters cannot be switched in place.
    if present.sets and _counts(netlink, base) != bool(base.counted):
        log.info("replacing table inet %s: endpoint counters were switched", base.table)
        _replace(netlink, base)
    # This version's own table, after another program changed it, is repaired at once. Whether sets
    # are missing does not matter: an upgrade that was interrupted left some of them empty.
    serves = bool(present.chains) and base.marker() not in present.chains
    try:
        if serves:
            # Sets of other types show here, before any element is written.
            run_nft(base.text(present.chains), check=True)
        # `nft -c` committed nothing: its batch has no end, so the kernel validates and undoes it.
        _load(netlink, base.additions(present) if serves else base.text(present.chains))
    except RejectedError as error:
        if base.table not in read_tables(netlink):
            raise
        log.warning("replacing table inet %s: cannot update it: %s", base.table, error)
        _replace(netlink, base)


def load_rules(netlink: Nfnetlink, base: BaseRules) -> None:
    """Load the base rules if `begin_load` has not. Idempotent. Raises KernelError."""
    present = read_layout(netlink, base.table).chains
    if base.marker() not in present:
        _load(netlink, base.text(present))


def finish_load(netlink: Nfnetlink, base: BaseRules, on_demand: Collection[str] = ()) -> None:
    """Load the base rules if `begin_load` has not, delete strays, and write the seal.

    Chains made on demand are deleted with the strays, except those in `on_demand`. Strays that the
    kernel does not delete are sealed with the rest, so that deletion is tried once. Raises
    KernelError.
    """
    table = base.table
    load_rules(netlink, base)
    layout = read_layout(netlink, table)
    if strays := base.strays(layout):
        # They may look up stray sets, and no element leads to them any more.
        unused = [n for n in layout.chains if base.is_on_demand(n) and n not in on_demand]
        strays = Names([*strays.chains, *unused], strays.sets)
        errors = netlink.transact(base.removal(strays), SUBSYSTEM)
        if errors:
            error = errors[0].error
            log.warning("cannot delete from table inet %s: %s: %s", table, strays, error)
        else:
            log.info("deleted from table inet %s: %s", table, strays)
    # The seal covers what the kernel made of the text, so the table is read once more.
    for failed in netlink.transact(base.sealing(read_layout(netlink, table)), SUBSYSTEM):
        raise failed.error


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
            # The socket and the process nft get the namespace of the thread that starts them.
            with closing(Nfnetlink()) as netlink:
                begin_load(netlink, base)
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
    errors = netlink.transact([nftables.delete_table(table)], SUBSYSTEM)
    if errors and not isinstance(errors[0].error, StaleStateError):
        raise errors[0].error


def run_nft(text: str, *, check: bool = False) -> None:
    """Run nft on these commands; with `check`, write nothing.

    Raises RejectedError, PermissionKernelError, TransientKernelError.
    """
    # nft sends the whole input as one batch, so the kernel applies all of it or nothing.
    command = ["nft", *(["-c"] if check else []), "-f", "-"]
    # nft prints the messages of the C library, which are compared below, in the node's language.
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, env=environment
        )
    except OSError as error:
        raise program_error("nft", error) from error
    if done.returncode:
        words = " ".join(done.stderr.split())
        kind = PermissionKernelError if "not permitted" in words else RejectedError
        raise kind(f"nft did not load the ruleset: {words[:500]}", 0)


def _load(netlink: Nfnetlink, text: str) -> None:
    """Run nft on a text, and count its transaction as one of `netlink`'s own."""
    before = read_generation(netlink.get(get_generation()))
    run_nft(text)
    after = read_generation(netlink.get(get_generation()))
    # A text that changes nothing makes no transaction; more than one are other programs'.
    netlink.committed += min(1, (after - before) % (1 << 32))


def _counts(netlink: Nfnetlink, base: BaseRules) -> bool:
    found = element_counters.read_counted_sets(netlink.dump(nftables.get_sets(base.table)))
    return not found.isdisjoint(base.kinds)


def _replace(netlink: Nfnetlink, base: BaseRules) -> NoReturn:
    # In a transaction of its own: nft 1.0.6 checks new text against the sets that it deletes.
    delete_table(netlink, base.table)
    _load(netlink, base.text())
    raise StaleStateError("the table was replaced, with all elements gone", 0)
