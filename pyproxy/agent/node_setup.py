"""The kernel modules and kernel settings that a node needs for its proxy, beside the rules.

The settings are those of kube-proxy v1.36: the conntrack table is enlarged if it is smaller than
configured, and never shrunk; timeouts are set as configured. A machine may forbid any of it, as a
container with a read-only /proc/sys does. The agent then logs a warning and continues.

Modules: the kernel loads nf_tables, conntrack and most others at their first use. It does not load
ip_tables for iptables-legacy, and IPVS has no sysctls before ip_vs is loaded. Loading needs
CAP_SYS_MODULE and /lib/modules: `--init-only` has both.

Node ports on 127.0.0.1: a translated connection leaves this machine for a pod, and its replies
arrive for 127.0.0.1. The kernel drops them unless the sysctl route_localnet is set. The rules then
drop packets of other machines to loopback addresses. IPv6 has no such sysctl.
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePath

from pyproxy.config.settings import LOOPBACK_IPV6, Conntrack, NodePorts, Settings
from pyproxy.dataplane import modes
from pyproxy.dataplane.mode import KernelSetting

log = logging.getLogger(__name__)

_NETFILTER = PurePath("proc/sys/net/netfilter")
# Writing it fails with EOPNOTSUPP outside the initial network namespace.
_HASH_SIZE = PurePath("sys/module/nf_conntrack/parameters/hashsize")
_ENTRIES_PER_BUCKET = 4  # kube-proxy's ratio
# Lowering it needs CAP_SYS_RESOURCE, so it is set before the agent drops capabilities.
_OOM_SCORE = PurePath("proc/self/oom_score_adj")
# The kernel ORs conf/all with each interface's own value, so this covers interfaces of later pods.
_ROUTE_LOCALNET = KernelSetting(PurePath("proc/sys/net/ipv4/conf/all/route_localnet"), 1)


def load_modules(settings: Settings) -> None:
    """Load the mode's kernel modules as far as possible. Blocks for modprobe; idempotent.

    Code that needs a module which is still missing reports that itself.
    """
    names = modes.of(settings.mode).modules(settings)
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
    return (*_conntrack(settings.conntrack, cores), *of_mode(settings), oom_score)


def of_mode(settings: Settings) -> tuple[KernelSetting, ...]:
    """Return the settings that the mode needs for as long as it serves."""
    return modes.of(settings.mode).kernel_settings(settings)


def _conntrack(given: Conntrack, cores: int) -> Iterator[KernelSetting]:
    if given.max_per_core:
        limit = max(given.max_per_core * cores, given.min)
        yield KernelSetting(_NETFILTER / "nf_conntrack_max", limit, at_least=True)
        yield KernelSetting(_HASH_SIZE, limit // _ENTRIES_PER_BUCKET, at_least=True)
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


class NodeKernel:
    """The kernel settings below `root`, which is / outside of tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._failed: set[KernelSetting] = set()

    def cores(self) -> int:
        """Count the CPU cores that are online, not only those that this process may use."""
        try:
            ranges = self._read(PurePath("sys/devices/system/cpu/online")).split(",")
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
                missing.append(setting)
                self._failed.add(setting)
            except OSError as error:
                self._failed.add(setting)
                forbidden.append(f"{setting.name} to {setting.value}: {_code(error)}")
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
        """Write the settings of the mode again if another program changed them. Idempotent.

        A failure is logged once, until the setting is right again.
        """
        for setting in of_mode(settings):
            try:
                self._make(setting)
            except OSError as error:
                if setting not in self._failed:
                    log.warning(
                        "cannot set %s to %d, which %s mode needs: %s",
                        setting.name,
                        setting.value,
                        settings.mode.value,
                        _code(error),
                    )
                self._failed.add(setting)
            else:
                self._failed.discard(setting)

    def prepare_loopback(self, node_ports: NodePorts) -> None:
        """Let the kernel route loopback addresses if node ports serve on them. Idempotent."""
        if node_ports.serves_loopback:
            self._route_localnet()
        elif node_ports.names_loopback:
            log.info("node ports do not serve on 127.0.0.1, as configured for this mode")
        if node_ports.localhost or any(LOOPBACK_IPV6 in each for each in node_ports.networks):
            log.info("node ports do not serve on ::1: the kernel cannot route from there")

    def _route_localnet(self) -> None:
        try:
            self._make(_ROUTE_LOCALNET)
        except OSError as error:
            log.warning(
                "cannot set %s to 1: %s: node ports do not serve on 127.0.0.1: set it on the node, "
                "or leave localhost out of --nodeport-addresses",
                _ROUTE_LOCALNET.name,
                _code(error),
            )

    def _make(self, setting: KernelSetting) -> None:
        """Write a setting unless it is met. Raises OSError."""
        # A container may read a sysctl that it may not write, and the value is often right already.
        if not setting.is_met_by(int(self._read(setting.path))):
            (self._root / setting.path).write_text(str(setting.value))
            log.info("set %s to %d", setting.name, setting.value)

    def _read(self, path: PurePath) -> str:
        return (self._root / path).read_text().strip()


def _code(error: OSError) -> str:
    """Name an errno, such as EPERM."""
    return errno.errorcode.get(error.errno or 0, str(error))
