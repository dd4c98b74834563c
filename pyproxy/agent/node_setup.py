"""The kernel modules and kernel settings that a node needs for its proxy, beside the rules.

The settings are those of kube-proxy v1.36: the conntrack table is enlarged if it is smaller than
configured, and never shrunk; timeouts are set as configured. A machine may forbid any of it, as a
container with a read-only /proc/sys does. The agent then logs a warning and continues.

Modules: the kernel loads nf_tables, conntrack and most others at their first use. It does not load
ip_tables for iptables-legacy, and IPVS and conntrack have no sysctls before they are loaded.
Loading needs CAP_SYS_MODULE and /lib/modules: `--init-only` has both.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath

from pyproxy.agent.kernel_settings import HASH_SIZE, HOST, KernelSettings, may_pass, table_name
from pyproxy.agent.loopback import ROUTE_LOCALNET, Loopback, error_name
from pyproxy.config.settings import (
    LOOPBACK_IPV6,
    Conntrack,
    FlowOffload,
    NodePorts,
    Settings,
)
from pyproxy.dataplane import modes
from pyproxy.dataplane.mode import KernelSetting
from pyproxy.dataplane.nft.node_table import TABLE, NodeTable
from pyproxy.errors import KernelError, PermissionKernelError, TransientKernelError

log = logging.getLogger(__name__)

_NETFILTER = PurePath("proc/sys/net/netfilter")
_LIMIT = _NETFILTER / "nf_conntrack_max"
CONNTRACK_LIMIT = Path("/") / _LIMIT
"""A file that exists once nf_conntrack is loaded."""
_FLOWTABLE_TIMEOUT = 120
"""Seconds, those of nf_conntrack_tcp_timeout_fin_wait and _time_wait."""

_ENTRIES_PER_BUCKET = 4  # kube-proxy's ratio
# Lowering it needs CAP_SYS_RESOURCE, so it is set before the agent drops capabilities.
_OOM_SCORE = PurePath("proc/self/oom_score_adj")
# Other programs rely on it without setting it: only `pyproxy cleanup` restores it.
_SHARED = frozenset({"net.ipv4.ip_forward"})


def load_modules(settings: Settings) -> None:
    """Load the mode's kernel modules, and conntrack, as far as possible.

    Blocks for modprobe; idempotent. Code that needs a module which is still missing reports that
    itself.
    """
    names = list(modes.of(settings.mode).modules(settings))
    if not CONNTRACK_LIMIT.exists() and "nf_conntrack" not in names:
        names.append("nf_conntrack")
    if not names:
        return
    try:
        done = subprocess.run(
            ["modprobe", "--all", "--quiet", *names], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        log.debug("cannot load kernel modules %s: modprobe is not on PATH", ", ".join(names))
        return
    if done.returncode:
        log.debug("cannot load all kernel modules %s: %s", ", ".join(names), done.stderr.strip())


def wanted(settings: Settings, cores: int) -> tuple[KernelSetting, ...]:
    """Return the settings for a machine with so many CPU cores, those of conntrack first."""
    oom_score = KernelSetting(_OOM_SCORE, settings.oom_score_adj)
    conntrack = (*_conntrack(settings.conntrack, cores), *_flowtables(settings))
    return (*conntrack, *of_mode(settings), oom_score)


def of_mode(settings: Settings) -> tuple[KernelSetting, ...]:
    """Return the settings that the mode needs for as long as it serves."""
    return modes.of(settings.mode).kernel_settings(settings)


def _conntrack(given: Conntrack, cores: int) -> Iterator[KernelSetting]:
    if given.max_per_core:
        limit = max(given.max_per_core * cores, given.min)
        yield KernelSetting(_LIMIT, limit, at_least=True)
        # Writing it fails with EOPNOTSUPP outside the initial network namespace.
        yield KernelSetting(HASH_SIZE, limit // _ENTRIES_PER_BUCKET, at_least=True)
    for name, seconds in (
        ("nf_conntrack_tcp_timeout_established", given.tcp_established_timeout),
        ("nf_conntrack_tcp_timeout_close_wait", given.tcp_close_wait_timeout),
        ("nf_conntrack_udp_timeout", given.udp_timeout),
        ("nf_conntrack_udp_timeout_stream", given.udp_stream_timeout),
    ):
        if seconds:
            # The kernel counts whole seconds, and 0 would end connections at once.
            yield KernelSetting(_NETFILTER / name, max(1, int(seconds)))
    if given.tcp_be_liberal:
        yield KernelSetting(_NETFILTER / "nf_conntrack_tcp_be_liberal", 1)


def _flowtables(settings: Settings) -> Iterator[KernelSetting]:
    if settings.nftables.flow_offload is not FlowOffload.NONE:
        # Newer kernels forget a half-closed connection 10 s after it has left the fast path, idle
        # for the default of 30 s. Conntrack remembers closed ones for 120 s too.
        name = _NETFILTER / "nf_flowtable_tcp_timeout"
        yield KernelSetting(name, _FLOWTABLE_TIMEOUT, at_least=True, optional=True)
        # `top --offloaded` reads packets and bytes from conntrack.
        yield KernelSetting(_NETFILTER / "nf_conntrack_acct", 1, optional=True)


def open_node_table() -> NodeTable | None:
    """Open table `inet pyproxy-node`; None, with a warning, if this kernel has no nf_tables.

    Raises PermissionKernelError.
    """
    try:
        table = NodeTable()
        with suppress(TransientKernelError):
            table.generation()
    except PermissionKernelError:
        raise
    except KernelError as error:
        log.warning(
            "this kernel has no nf_tables (%s): pyproxy cleanup cannot restore kernel settings, "
            "and route_localnet stays as it is",
            error,
        )
        return None
    return table


class NodeKernel:
    """The kernel settings below `root`, which is / outside of tests, and the loopback shield.

    `table` is None if this kernel has no nf_tables.
    """

    def __init__(self, table: NodeTable | None, root: Path = Path("/")) -> None:
        self._root = root
        self._table = table
        self._settings = KernelSettings(root, table)
        self._failed: set[KernelSetting] = set()
        # Those that `keep` still has to write: optional ones, whose module may not be loaded yet or
        # which this kernel lacks, and those that failed with an error that may pass.
        self._awaited: set[KernelSetting] = set()
        self._loopback = Loopback(table, self._settings, root)
        # nf_tables' number of transactions before `keep` last read the table; None if it must.
        self._generation: int | None = None
        # The steps of the last `keep` that failed.
        self._failed_steps: set[str] = set()
        self._serves_alone = False

    def cores(self) -> int:
        """Count the CPU cores that are online, not only those that this process may use."""
        try:
            ranges = self._settings.read(PurePath("sys/devices/system/cpu/online")).split(",")
        except OSError:
            return os.cpu_count() or 1
        # The kernel writes it as "0-3,8" or "0".
        spans = [[int(end) for end in each.split("-")] for each in ranges]
        return sum(span[-1] - span[0] + 1 for span in spans)

    def apply(self, settings: Settings) -> None:
        """Write all settings. Idempotent; failures are logged in at most two warnings."""
        missing: list[KernelSetting] = []
        forbidden: list[str] = []
        for setting in wanted(settings, self.cores()):
            try:
                self._make(setting)
            except FileNotFoundError:
                if setting.optional:
                    self._awaited.add(setting)
                    continue
                missing.append(setting)
                self._failed.add(setting)
            except (OSError, KernelError) as error:
                if setting.optional or isinstance(error, KernelError) or may_pass(error):
                    self._awaited.add(setting)
                self._failed.add(setting)
                forbidden.append(f"{setting.name} to {setting.value}: {error_name(error)}")
        if missing:
            log.warning(
                "cannot set %s: no such file: load the kernel module %s before the start",
                ", ".join(setting.name for setting in missing),
                " and ".join(dict.fromkeys(setting.module for setting in missing)),
            )
        if forbidden:
            log.warning(
                "cannot set %s; set them on the node if needed",
                "; ".join(forbidden),
            )

    def keep(self, settings: Settings) -> None:
        """Undo other programs' changes to the mode's settings, the shield and the memory.

        Optional settings are written once their module is loaded. Idempotent. A failure is logged
        once, until the setting is right again, and each call tries again.
        """
        self._make_awaited()
        for setting in of_mode(settings):
            try:
                self._make(setting)
            except (OSError, KernelError) as error:
                if setting not in self._failed:
                    log.warning(
                        "cannot set %s to %d, which %s mode needs: %s",
                        setting.name,
                        setting.value,
                        settings.mode.value,
                        error_name(error),
                    )
                self._failed.add(setting)
            else:
                self._failed.discard(setting)
        for name, step in (
            ("restore settings that other modes needed", partial(self._restore_others, settings)),
            ("read net.ipv4.conf.*.route_localnet", self._look_at_loopback),
            (f"write table inet {TABLE} again", self._keep_table),
        ):
            try:
                step()
            except (OSError, KernelError) as error:
                if name not in self._failed_steps:
                    log.warning("cannot %s: %s", name, error_name(error))
                self._failed_steps.add(name)
            else:
                self._failed_steps.discard(name)

    def prepare_loopback(self, node_ports: NodePorts) -> None:
        """Let the kernel route loopback addresses if node ports serve on them, and else restore it.

        Idempotent; failures are logged.
        """
        if node_ports.serves_loopback:
            self._loopback.open()
        else:
            if node_ports.names_loopback:
                log.info("node ports do not serve on 127.0.0.1, as configured for this mode")
            self._restore([ROUTE_LOCALNET])
        if node_ports.localhost or any(LOOPBACK_IPV6 in each for each in node_ports.networks):
            log.info("node ports do not serve on ::1: the kernel cannot route from there")
        try:
            self._loopback.shield_while_open()
        except KernelError as error:
            log.warning("cannot write table inet %s: %s", TABLE, error)

    def shield_loopback(self) -> bool:
        """Put up the shield if route_localnet is set; return whether it is new. Idempotent.

        Raises KernelError.
        """
        return self._loopback.shield_if_open()

    def leftovers_removed(self) -> None:
        """Note that no other mode's rules are left, so that `keep` may restore their settings.

        Any thread; does not block.
        """
        self._serves_alone = True

    def restore(self, *, keep_shield: bool = True) -> bool:
        """Restore all settings, and delete the table; return False if something could not be.

        While route_localnet is set, or cannot be read, the shield stays, and so does the table,
        unless `keep_shield` is False. Idempotent.
        """
        clean = self._restore_all()
        try:
            self._loopback.remove_shield(keep_if_open=keep_shield)
        except OSError as error:
            log.error(
                "cannot read net.ipv4.conf.*.route_localnet: %s: table inet %s stays",
                error_name(error),
                TABLE,
            )
            return False
        except KernelError as error:
            log.error("cannot delete table inet %s: %s", TABLE, error)
            return False
        return clean

    def close(self) -> None:
        """Close the socket; the table stays."""
        if self._table is not None:
            self._table.close()

    def _make_awaited(self) -> None:
        for setting in [*self._awaited]:
            try:
                self._make(setting)
            except FileNotFoundError:
                continue
            except (OSError, KernelError) as error:
                if setting not in self._failed:
                    log.warning("cannot set %s: %s", setting.name, error_name(error))
                self._failed.add(setting)
            else:
                self._failed.discard(setting)
                self._awaited.discard(setting)

    def _restore_others(self, settings: Settings) -> None:
        """Restore what only other modes needed, once none of them serves. Raises KernelError."""
        if not self._serves_alone:
            return
        # Cleared first, because another thread sets it.
        self._serves_alone = False
        # `prepare_loopback` decides about route_localnet.
        needed = {table_name(each) for each in wanted(settings, self.cores())}
        try:
            names = self._settings.remembered().keys() - {*needed, *_SHARED, ROUTE_LOCALNET}
            refused, failed = self._try_to_restore(names)
            for error in failed.values():
                raise error
        except KernelError:
            self._serves_alone = True
            raise
        _report(refused)

    def _look_at_loopback(self) -> None:
        """Have `_keep_table` put up the shield if route_localnet was set. Raises OSError."""
        if self._loopback.was_opened():
            self._generation = None

    def _keep_table(self) -> None:
        """Write the table again if it may have changed. Raises KernelError."""
        if self._table is None:
            return
        # Read first, so that a change by another program during the work is seen next time.
        generation = self._table.generation()
        if generation == self._generation:
            return
        self._loopback.keep_shield()
        self._settings.keep_memory()
        self._generation = generation

    def _restore_all(self) -> bool:
        try:
            names = self._settings.remembered().keys()
        except KernelError as error:
            log.error("cannot read table inet %s: %s", TABLE, error)
            return False
        return self._restore(names)

    def _restore(self, names: Iterable[str]) -> bool:
        refused, failed = self._try_to_restore(names)
        for name, error in failed.items():
            log.error("cannot restore %s: %s", name, error)
        _report(refused)
        return not refused and not failed

    def _try_to_restore(self, names: Iterable[str]) -> tuple[list[str], dict[str, KernelError]]:
        """Return what was refused, and the errors of the table by setting, which may pass."""
        refused: list[str] = []
        failed: dict[str, KernelError] = {}
        for name in sorted(names):
            try:
                if reason := self._settings.restore(name):
                    refused.append(reason)
            except KernelError as error:
                failed[name] = error
        return refused, failed

    def _make(self, setting: KernelSetting) -> None:
        """Write a setting unless it is met. Raises OSError, KernelError."""
        if setting.path != _OOM_SCORE:
            self._settings.make(setting)
        elif not setting.is_met_by(int(self._settings.read(setting.path))):
            # It ends with this process, so nothing has to be restored.
            (self._root / setting.path).write_text(str(setting.value))
            log.info("set %s to %d", setting.name, setting.value)


def _report(refused: list[str]) -> None:
    if refused:
        log.warning(
            "cannot restore %s; set them on the node, or run pyproxy cleanup with its "
            "/proc/sys/net and /sys/module mounted below /%s",
            "; ".join(refused),
            HOST,
        )
