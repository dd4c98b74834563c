"""Loading the fixed part of the table through nft."""

from __future__ import annotations

import logging
import subprocess
from typing import NoReturn

from pyproxy.dataplane.nftables import ruleset, schema
from pyproxy.dataplane.nftables.layout import read_layout
from pyproxy.dataplane.nftables.readback import read_tables
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import PermissionKernelError, RejectedError, StaleStateError
from pyproxy.netlink import element_counters, nftables
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_table

log = logging.getLogger(__name__)


def load(netlink: Nfnetlink, options: Options) -> None:
    """Make the fixed part so, keeping every element; `seal` must follow.

    A table of our name whose sets have other types cannot be kept. It is replaced, and
    StaleStateError says that its elements are gone. Neither can one whose elements count where
    they should not, or the other way round. Raises KernelError.
    """
    present = read_layout(netlink)
    if present.sets and _counts(netlink) != options.endpoint_counters:
        log.info("replacing table inet %s, for its elements are to count or to stop it", TABLE)
        _replace(netlink, options)
    try:
        run_nft(ruleset.ruleset(options, present.chains))
    except RejectedError as error:
        if TABLE not in read_tables(netlink):
            raise
        log.warning("table inet %s is not ours or too old, replacing it: %s", TABLE, error)
        _replace(netlink, options)


def seal(netlink: Nfnetlink) -> None:
    """Clear away what is not ours, now that no element needs it, and seal the rest.

    What the kernel will not remove is sealed with it, so that it is tried once. Raises KernelError.
    """
    if strays := read_layout(netlink).strays():
        refusals = netlink.transact(strays.removal(), SUBSYSTEM)
        if refusals:
            log.warning(
                "cannot remove from table inet %s: %s: %s", TABLE, strays, refusals[0].error
            )
        else:
            log.info("removed from table inet %s what is not ours: %s", TABLE, strays)
    for refusal in netlink.transact(read_layout(netlink).sealing(), SUBSYSTEM):
        raise refusal.error


def _counts(netlink: Nfnetlink) -> bool:
    found = element_counters.read_counted_sets(netlink.dump(nftables.get_sets(TABLE)))
    return not found.isdisjoint(schema.BY_NAME)


def _replace(netlink: Nfnetlink, options: Options) -> NoReturn:
    # Apart, for nft 1.0.6 checks the new text against the sets that it deletes.
    for refusal in netlink.transact([delete_table(TABLE)], SUBSYSTEM):
        raise refusal.error
    run_nft(ruleset.ruleset(options, ()))
    raise StaleStateError("the table was replaced, with all elements gone", 0)


def run_nft(text: str) -> None:
    """Have nft carry out its commands. Raises RejectedError, PermissionKernelError."""
    done = subprocess.run(
        ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = " ".join(done.stderr.split())
        kind = PermissionKernelError if "not permitted" in words else RejectedError
        raise kind(f"nft did not load the ruleset: {words[:500]}", 0)
