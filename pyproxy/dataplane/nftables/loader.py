"""Loading the fixed part of the table through nft."""

from __future__ import annotations

import logging
import subprocess

from pyproxy.dataplane.nftables import ruleset
from pyproxy.dataplane.nftables.layout import Layout, read_layout
from pyproxy.dataplane.nftables.readback import read_tables
from pyproxy.dataplane.nftables.ruleset import Options
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.errors import OutOfStepError, PermissionKernelError, RejectedError
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM, delete_table

log = logging.getLogger(__name__)


def load(netlink: Nfnetlink, options: Options) -> Layout:
    """Make the fixed part so, keeping every element, and seal it; the layout that came of it.

    A table of our name whose sets have other types cannot be kept. It is replaced, and
    OutOfStepError says that its elements are gone. Raises KernelError.
    """
    try:
        _nft(ruleset.ruleset(options, read_layout(netlink).chains))
    except RejectedError as error:
        if TABLE not in read_tables(netlink):
            raise
        log.warning("table inet %s is not ours or too old, replacing it: %s", TABLE, error)
        # Apart, for nft 1.0.6 checks the new text against the sets that it deletes.
        for refusal in netlink.transact([delete_table(TABLE)], SUBSYSTEM):
            raise refusal.error from error
        _nft(ruleset.ruleset(options, ()))
        _seal(netlink)
        raise OutOfStepError("the table was replaced, with all elements gone", 0) from error
    return _seal(netlink)


def _seal(netlink: Nfnetlink) -> Layout:
    layout = read_layout(netlink)
    for refusal in netlink.transact(layout.sealing(), SUBSYSTEM):
        raise refusal.error
    return layout


def _nft(text: str) -> None:
    done = subprocess.run(
        ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = " ".join(done.stderr.split())
        kind = PermissionKernelError if "not permitted" in words else RejectedError
        raise kind(f"nft did not load the ruleset: {words[:500]}", 0)
