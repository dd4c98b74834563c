"""Loopback addresses that the kernel routes, for node ports on 127.0.0.1, and their shield.

A translated connection leaves this machine for a pod, and its replies arrive for 127.0.0.1. The
kernel drops them unless the sysctl route_localnet is 1. Without a shield, neighbours on a link then
reach programs that listen on loopback addresses alone (CVE-2020-8558).

The shield is up before the sysctl is 1, and stays as long as it is 1 on any interface, whichever
program set it. IPv6 has no such sysctl.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path, PurePath

from pyproxy.agent.kernel_settings import KernelSettings, table_name
from pyproxy.dataplane.mode import KernelSetting
from pyproxy.dataplane.nft.node_table import TABLE, NodeTable
from pyproxy.errors import KernelError

log = logging.getLogger(__name__)

_INTERFACES = PurePath("proc/sys/net/ipv4/conf")
# The kernel ORs conf/all with each interface's own value, so this covers interfaces of later pods.
_SETTING = KernelSetting(_INTERFACES / "all" / "route_localnet", 1)
ROUTE_LOCALNET = table_name(_SETTING)

_FEW = 32
"""Interfaces that one look at the sysctl reads, each in 20 microseconds."""


class Loopback:
    """The sysctl and the shield; `table` is None if this kernel has no nf_tables."""

    def __init__(self, table: NodeTable | None, settings: KernelSettings, root: Path) -> None:
        self._table = table
        self._settings = settings
        self._root = root
        # Whether the sysctl was 1 anywhere when it was last read.
        self._is_open = False
        # Interfaces that `was_opened` reads in its next calls.
        self._unread: list[str] = []

    def open(self) -> None:
        """Put up the shield, and then let the kernel route loopback addresses.

        Idempotent; logs a warning if that is refused.
        """
        try:
            if self._table is not None:
                self._table.add_shield()
                self._settings.make(_SETTING)
                return
            if _SETTING.is_met_by(int(self._settings.read(_SETTING.path))):
                return
            reason = "no nf_tables to protect loopback addresses with"
        except (OSError, KernelError) as error:
            reason = error_name(error)
        log.warning(
            "cannot set %s to 1: %s: node ports do not serve on 127.0.0.1: set it on the node, "
            "or leave localhost out of --nodeport-addresses",
            _SETTING.name,
            reason,
        )

    def shield_while_open(self) -> None:
        """Put up the shield if the sysctl is 1, and else remove it. Idempotent; KernelError."""
        opened = self._open_interfaces()
        self._is_open = bool(opened)
        if self._table is None:
            return
        if not opened:
            self._table.remove_shield()
            return
        self._table.add_shield()
        if ROUTE_LOCALNET not in self._settings.remembered():
            log.info(
                "net.ipv4.conf.%s.route_localnet is 1, which pyproxy did not set: dropping packets "
                "of other machines to and from 127.0.0.0/8",
                ",".join(opened),
            )

    def shield_if_open(self) -> bool:
        """Put up the shield if the sysctl is 1; return whether it is new. Idempotent; KernelError.

        Does nothing without nf_tables.
        """
        if self._table is None or not self._open_interfaces() or self._table.has_shield():
            return False
        self._table.add_shield()
        return True

    def was_opened(self) -> bool:
        """Return whether another program has set the sysctl since the last call.

        Each call reads that of `all` and of a few interfaces, in turn: there may be hundreds.
        """
        if self._is_open:
            return False
        self._unread = self._unread or self._interfaces()
        now, self._unread = self._unread[:_FEW], self._unread[_FEW:]
        self._is_open = any(map(self._is_set, ["all", *now]))
        return self._is_open

    def keep_shield(self) -> None:
        """Put up the shield again if another program removed it. Idempotent; KernelError."""
        if self._is_open and self._table is not None:
            self._table.add_shield()

    def remove_shield(self, *, keep_if_open: bool) -> None:
        """Remove the shield; with `keep_if_open` only if the sysctl is 0. Idempotent; KernelError.

        Logs a warning if it stays.
        """
        if self._table is None or not self._table.has_shield():
            return
        opened = self._open_interfaces() if keep_if_open else []
        if not opened:
            self._table.remove_shield()
            return
        log.warning(
            "net.ipv4.conf.%s.route_localnet is 1: table inet %s stays, because it drops packets "
            "of other machines to and from 127.0.0.0/8; set the sysctl to 0 and run cleanup again",
            ",".join(opened),
            TABLE,
        )

    def _open_interfaces(self) -> list[str]:
        """Name the entries of net.ipv4.conf whose route_localnet is 1."""
        return [name for name in self._interfaces() if self._is_set(name)]

    def _interfaces(self) -> list[str]:
        """Name the entries of net.ipv4.conf, but not lo, by which the node's own packets enter."""
        try:
            names = sorted(each.name for each in (self._root / _INTERFACES).iterdir())
        except OSError:
            return []
        return [name for name in names if name != "lo"]

    def _is_set(self, interface: str) -> bool:
        try:
            return self._settings.read(_INTERFACES / interface / "route_localnet") == "1"
        except OSError:  # the interface is gone
            return False


def error_name(error: OSError | KernelError) -> str:
    """Name an errno, such as EPERM."""
    return errno.errorcode.get(error.errno or 0, str(error))
