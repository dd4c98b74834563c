"""The table of rules around IPVS: loaded through nft, filled and read back over netlink."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pyproxy.dataplane.ipvs.ruleset import Options, base_rules
from pyproxy.dataplane.ipvs.schema import BY_NAME, TABLE
from pyproxy.dataplane.nft import loader
from pyproxy.dataplane.nft.loader import read_layout, require_nft
from pyproxy.dataplane.nft.own_transactions import without_notifications
from pyproxy.dataplane.nft.readback import read_table, read_tables
from pyproxy.dataplane.nft.schema import Table
from pyproxy.errors import KernelError, UsageError
from pyproxy.netlink.elements import ElementMessage
from pyproxy.netlink.kernel_errors import MessageError
from pyproxy.netlink.monitor import Foreign, Monitor
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import SUBSYSTEM


class RulesTable:
    """Table `inet pyproxy-ipvs` of the network namespace that it was made in."""

    def __init__(self) -> None:
        self.netlink = Nfnetlink()
        self._monitor = Monitor(TABLE, self.netlink.port)

    def prepare(self) -> None:
        """Check that nft and nf_tables may be used. Raises UsageError, KernelError."""
        require_nft()
        self.prepare_to_read()
        # Before the first read-back, so that no later change is missed.
        self._monitor.listen()

    def prepare_to_read(self) -> None:
        """Check that nf_tables may be read. Raises KernelError."""
        read_tables(self.netlink)

    def read(self) -> Table:
        """Read all elements. Raises KernelError."""
        return read_table(self.netlink, TABLE, BY_NAME)

    def is_loaded(self, options: Options) -> bool:
        """Return whether the base rules are those of these options, unchanged."""
        return base_rules(options).is_loaded(read_layout(self.netlink, TABLE))

    def check(self, options: Options) -> tuple[str, ...]:
        """Return a line for each difference in the base rules. Raises KernelError."""
        if TABLE not in read_tables(self.netlink):
            return (f"add table inet {TABLE}",)
        return loader.check_base_rules(self.netlink, base_rules(options))

    def load(self, options: Options) -> None:
        """Load the base rules and keep every element; `seal` must follow.

        A table that cannot be kept is replaced, and StaleStateError says that its elements are
        gone. Raises KernelError.
        """
        # Notifications of what nft writes would look foreign.
        with self.unannounced():
            loader.begin_load(self.netlink, base_rules(options))

    def seal(self, options: Options) -> None:
        """Delete chains and sets that are not of this version. Raises KernelError."""
        with self.unannounced():
            loader.finish_load(self.netlink, base_rules(options))

    def write(self, elements: list[ElementMessage]) -> MessageError | None:
        """Write elements in one transaction; return the error that aborted it, if any."""
        errors = self.netlink.transact([each.message for each in elements], SUBSYSTEM)
        # nf_tables reports each message that fails, and aborts: the next attempt finds the others.
        return errors[0] if errors else None

    def delete(self) -> None:
        """Delete the table; idempotent. Raises KernelError."""
        loader.delete_table(self.netlink, TABLE)

    def unannounced(self) -> AbstractContextManager[None]:
        """Inside it writes are not notified; other programs' are reported afterwards."""
        return without_notifications(self.netlink, self._monitor)

    def wait(self) -> Foreign | None:
        """Block until another program writes; None after `close`. Raises KernelError."""
        foreign = self._monitor.wait()
        if foreign is None:
            self._monitor.close()
        return foreign

    def close(self) -> None:
        """Close the sockets; the table stays."""
        self._monitor.end()
        self.netlink.close()


def unusable(error: KernelError) -> UsageError:
    """Return the error for a kernel without IPVS, or a process without the rights."""
    return UsageError(
        f"cannot use IPVS: {error}: load the module ip_vs, and run with CAP_NET_ADMIN"
    )
