"""Writes to kernel settings that `pyproxy cleanup` can revert: the kernel keeps the earlier values.

A value is remembered in table `inet pyproxy-node` before the write, so that no crash loses it. A
value is restored only where the kernel still has one that pyproxy wrote.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path, PurePath

from pyproxy.dataplane.mode import KernelSetting
from pyproxy.dataplane.nft.node_table import NodeTable, Remembered
from pyproxy.errors import TransientKernelError

log = logging.getLogger(__name__)

HASH_SIZE = PurePath("sys/module/nf_conntrack/parameters/hashsize")

_PASSING = {
    errno.EINTR,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ENOMEM,
    errno.ENOBUFS,
    errno.EMFILE,
    errno.ENFILE,
}

HOST = PurePath("host")
"""The folder below which a container has the node's files, as in the pods of `kubectl debug`."""

_SYSCTLS = (
    "net.ipv4.conf.all.arp_announce",
    "net.ipv4.conf.all.arp_ignore",
    "net.ipv4.conf.all.route_localnet",
    "net.ipv4.ip_forward",
    "net.ipv4.vs.conn_reuse_mode",
    "net.ipv4.vs.conntrack",
    "net.ipv4.vs.expire_nodest_conn",
    "net.ipv4.vs.expire_quiescent_template",
    "net.netfilter.nf_conntrack_acct",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_tcp_be_liberal",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_udp_timeout",
    "net.netfilter.nf_conntrack_udp_timeout_stream",
    "net.netfilter.nf_flowtable_tcp_timeout",
)

# Other programs may write the table too, so a name from it leads to a file of these only.
RESTORABLE = {
    str(HASH_SIZE): HASH_SIZE,
    **{name: PurePath("proc/sys", *name.split(".")) for name in _SYSCTLS},
}
"""The files of all settings that any mode writes, by `table_name`."""


class KernelSettings:
    """The kernel settings below `root`; `table` is None if this kernel has no nf_tables."""

    def __init__(self, root: Path, table: NodeTable | None) -> None:
        self._root = root
        self._table = table
        # The table's contents, so that another program's `nft flush ruleset` loses nothing.
        self._known: dict[str, Remembered] = {}

    def read(self, path: PurePath) -> str:
        """Read a file. Raises OSError."""
        return (self._root / path).read_text().strip()

    def make(self, setting: KernelSetting) -> None:
        """Write a setting unless it is met. Idempotent. Raises OSError, KernelError."""
        # A container may read a sysctl that it may not write, and the value is often right already.
        current = int(self.read(setting.path))
        if setting.is_met_by(current):
            return
        # A read-only file system refuses to open the file, and then there is nothing to remember.
        os.close(os.open(self._writable(setting.path), os.O_WRONLY))
        self._remember_and_write(setting, current)
        log.info("set %s to %d", setting.name, setting.value)

    def remembered(self) -> dict[str, Remembered]:
        """Read the settings that pyproxy changed, by `table_name`. Raises KernelError."""
        if self._table is not None:
            self._known |= self._table.memory()
        return dict(self._known)

    def keep_memory(self) -> None:
        """Write to the table again what other programs deleted. Raises KernelError."""
        if self._table is None:
            return
        found = self._table.memory()
        for name, what in self._known.items():
            if name not in found:
                self._table.remember(name, what)
        self._known |= found

    def restore(self, name: str) -> str:
        """Write the value from before pyproxy's, and forget it.

        Returns an empty text, or what was refused: the name, the value and the errno. A value that
        another program wrote since then stays. Idempotent. Raises KernelError.
        """
        what, path = self.remembered().get(name), RESTORABLE.get(name)
        if what is None or path is None or self._table is None:
            return ""
        try:
            current = int(self.read(path))
            if current in what.written and current != what.before:
                self._writable(path).write_text(str(what.before))
                log.info("restored %s to %d", name, what.before)
            elif current != what.before:
                log.info("%s is %d, which pyproxy did not set: left as it is", name, current)
        except FileNotFoundError:
            log.debug("%s is gone, and with it the value that pyproxy set", name)
        except OSError as error:
            number = errno.errorcode.get(error.errno or 0, str(error))
            if may_pass(error):
                raise TransientKernelError(f"{number}: /{path}", error.errno or 0) from error
            return f"{name} to {what.before}: {number}"
        self._table.forget(name)
        self._known.pop(name, None)
        return ""

    def _writable(self, path: PurePath) -> Path:
        # In a container that is not privileged, /proc/sys and /sys are read-only.
        mounted = self._root / HOST / path
        return mounted if mounted.exists() else self._root / path

    def _remember_and_write(self, setting: KernelSetting, current: int) -> None:
        name, table = table_name(setting), self._table
        earlier = self.remembered().get(name)
        ours = earlier is not None and current in earlier.written
        before = earlier.before if earlier is not None and ours else current
        if table is not None:
            # Until the write is done, the kernel may have either value after a crash.
            written = frozenset({current, setting.value} if ours else {setting.value})
            table.remember(name, Remembered(before, written))
        try:
            self._writable(setting.path).write_text(str(setting.value))
        except OSError:
            if table is not None and not ours:
                self._known.pop(name, None)
                table.forget(name)
            raise
        if table is None or setting.value != before:
            self._known[name] = Remembered(before, frozenset({setting.value}))
            if table is not None:
                table.remember(name, self._known[name])
        else:
            table.forget(name)
            self._known.pop(name, None)


def may_pass(error: OSError) -> bool:
    """Return whether a file may be readable or writable later, without a change of rights."""
    return error.errno in _PASSING


def table_name(setting: KernelSetting) -> str:
    """Return a setting's name in table `inet pyproxy-node`, where none begins with a slash."""
    return setting.name.lstrip("/")
