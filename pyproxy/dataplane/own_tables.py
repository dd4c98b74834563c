"""Our nftables tables as a whole: whether one is there, and its removal."""

from __future__ import annotations

from contextlib import closing

from pyproxy.errors import StaleStateError
from pyproxy.netlink import nftables
from pyproxy.netlink.nfnetlink import Nfnetlink


def has_table(name: str) -> bool:
    """Return whether the inet family has a table of this name. Raises KernelError."""
    with closing(Nfnetlink()) as netlink:
        return name in nftables.read_table_names(netlink.dump(nftables.get_tables()))


def remove_table(name: str) -> bool:
    """Remove a table of the inet family; False if there is none. Raises KernelError."""
    if not has_table(name):
        return False
    with closing(Nfnetlink()) as netlink:
        for failed in netlink.transact([nftables.delete_table(name)], nftables.SUBSYSTEM):
            # Another process may have removed it meanwhile.
            if not isinstance(failed.error, StaleStateError):
                raise failed.error
    return True
