"""Loopback addresses that the kernel routes, for node ports on 127.0.0.1, and their shield.

A translated connection leaves this machine for a pod, and its replies arrive for 127.0.0.1. The
kernel drops them unless the sysctl route_localnet is set: any value but 0, because it is an integer
without bounds. Without a shield, neighbours on a link then reach programs that listen on loopback
addresses alone (CVE-2020-8558).

The shield is up before the sysctl is set, and stays as long as it is set on any interface by any
program, or cannot be read. IPv6 has no such sysctl.
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
        # Whether the sysctl was set anywhere when it was last read, or could not be read.
        self._is_open = False
        # Interfaces that `was_opened` reads in its next calls, the next one last.
        self._unread: list[str] = []

    def open(self) -> None:
        """Put up the shield, and then let the kernel route loopback addresses.

        Idempotent; logs a warning if that is refused.
        """
        try:
            if self._table is not None:
                self._table.add_shield()
            if self._settings.read(_SETTING.path) != "0":
                return
            if self._table is not None:
                self._settings.make(_SETTING)
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
        """Put up the shield if the sysctl is set, and else remove it. Idempotent; KernelError.

        A sysctl that cannot be read counts as set.
        """
        reason = self._reason()
        self._is_open = bool(reason)
        if self._table is None:
            return
        if not reason:
            self._table.remove_shield()
            return
        self._table.add_shield()
        if ROUTE_LOCALNET not in self._settings.remembered():
            log.info(
                "%s, and pyproxy did not set it: dropping packets of other machines to and from "
                "127.0.0.0/8",
                reason,
            )

    def shield_if_open(self) -> bool:
        """Put up the shield if the sysctl is set; return whether it is new.

        A sysctl that cannot be read counts as set. Does nothing without nf_tables. Idempotent.
        Raises KernelError.
        """
        if self._table is None or not self._reason() or self._table.has_shield():
            return False
        self._table.add_shield()
        return True

    def was_opened(self) -> bool:
        """Return whether another program has set the sysctl since the last call.

        Each call reads that of `all` and of a few interfaces, in turn: there may be hundreds.
        Raises OSError if one could not be read, and continues with the others in the next call.
        """
        if self._is_open:
            return False
        self._is_open = self._is_set("all") or self._is_set_on_next()
        return self._is_open

    def _is_set_on_next(self) -> bool:
        self._unread = self._unread or self._interfaces()[::-1]
        count = min(_FEW, len(self._unread))
        return any(self._is_set(self._unread.pop()) for _ in range(count))

    def keep_shield(self) -> None:
        """Put up the shield again if another program removed it. Idempotent; KernelError."""
        if self._is_open and self._table is not None:
            self._table.add_shield()

    def remove_shield(self, *, keep_if_open: bool) -> None:
        """Remove the shield; with `keep_if_open` only if the sysctl is 0. Idempotent.

        Logs a warning if it stays. Raises KernelError, and OSError if the sysctl cannot be read.
        """
        if self._table is None or not self._table.has_shield():
            return
        opened = self._open_interfaces() if keep_if_open else []
        if not opened:
            self._table.remove_shield()
            return
        log.warning(
            "%s: table inet %s stays, because it drops packets of other machines to and from "
            "127.0.0.0/8; set the sysctl to 0 and run cleanup again",
            _set_on(opened),
            TABLE,
        )

    def _reason(self) -> str:
        """Return why the shield has to be up; empty if no interface needs it."""
        try:
            opened = self._open_interfaces()
        except OSError as error:
            # EMFILE for example says nothing about the sysctl.
            return f"cannot read net.ipv4.conf.*.route_localnet: {error_name(error)}"
        return _set_on(opened) if opened else ""

    def _open_interfaces(self) -> list[str]:
        """Name the entries of net.ipv4.conf whose route_localnet is set. Raises OSError."""
        return [name for name in self._interfaces() if self._is_set(name)]

    def _interfaces(self) -> list[str]:
        """Name the entries of net.ipv4.conf, but not lo, by which the node's own packets enter.

        Raises OSError.
        """
        try:
            names = sorted(each.name for each in (self._root / _INTERFACES).iterdir())
        except FileNotFoundError:  # a kernel without this sysctl
            return []
        return [name for name in names if name != "lo"]

    def _is_set(self, interface: str) -> bool:
        """Return whether an interface's route_localnet is not 0. Raises OSError."""
        try:
            return self._settings.read(_INTERFACES / interface / "route_localnet") != "0"
        except FileNotFoundError:  # the interface is gone
            return False


def _set_on(interfaces: list[str]) -> str:
    return f"net.ipv4.conf.{','.join(interfaces)}.route_localnet is not 0"


def error_name(error: OSError | KernelError) -> str:
    """Name an errno, such as EPERM."""
    return errno.errorcode.get(error.errno or 0, str(error))
