"""The kernel's settings that a node needs for its proxy, beside the rules.

They are those of kube-proxy v1.36: the table of connections is made larger where it is smaller
than asked for, and never smaller; timeouts are set to what is configured. A machine may forbid any
of it, as a container does with a /proc/sys that is read-only: that is told, and the agent goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from pyproxy.config.settings import Conntrack, Settings
from pyproxy.dataplane import modes
from pyproxy.dataplane.mode import KernelSetting

log = logging.getLogger(__name__)

_NETFILTER = PurePath("proc/sys/net/netfilter")
_HASH_SIZE = PurePath("sys/module/nf_conntrack/parameters/hashsize")
_ENTRIES_PER_BUCKET = 4
_OOM_SCORE = PurePath("proc/self/oom_score_adj")


def wanted(settings: Settings, cores: int) -> tuple[KernelSetting, ...]:
    """List the settings for a machine with so many CPU cores, the table of connections first."""
    oom_score = KernelSetting(_OOM_SCORE, settings.oom_score_adj)
    return (*_conntrack(settings.conntrack, cores), *of_mode(settings), oom_score)


def of_mode(settings: Settings) -> tuple[KernelSetting, ...]:
    """List the settings that the mode needs for as long as it serves."""
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
            # The kernel counts whole seconds, and less than one must not become none.
            yield KernelSetting(_NETFILTER / name, max(1, int(seconds)))
    if given.tcp_be_liberal:
        yield KernelSetting(_NETFILTER / "nf_conntrack_tcp_be_liberal", 1)


class Machine:
    """The files of settings below `root`, which is / on a machine."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._wrong: set[KernelSetting] = set()

    def cores(self) -> int:
        """Count the CPU cores that are on, be they this process's to use or not."""
        try:
            ranges = self._read(PurePath("sys/devices/system/cpu/online")).split(",")
        except OSError:
            return os.cpu_count() or 1
        spans = [[int(end) for end in each.split("-")] for each in ranges]
        return sum(span[-1] - span[0] + 1 for span in spans)

    def apply(self, settings: Settings) -> None:
        """Make the settings where they are not made yet; what cannot be is at most two warnings."""
        missing: list[KernelSetting] = []
        forbidden: list[str] = []
        for setting in wanted(settings, self.cores()):
            try:
                self._make(setting)
            except FileNotFoundError:
                missing.append(setting)
                self._wrong.add(setting)
            except OSError as error:
                self._wrong.add(setting)
                forbidden.append(f"{setting.name} = {setting.value} ({error.strerror})")
        if missing:
            log.warning(
                "left as the kernel has them: %s: load the module %s before the start",
                ", ".join(setting.name for setting in missing),
                " and ".join(dict.fromkeys(setting.module for setting in missing)),
            )
        if forbidden:
            log.warning(
                "this machine does not let us set %s: set them on the node where they matter",
                ", ".join(forbidden),
            )

    def keep(self, settings: Settings) -> None:
        """Put right what somebody has changed of what the mode cannot do without.

        What cannot be is told once, until it is right again.
        """
        for setting in of_mode(settings):
            try:
                self._make(setting)
            except OSError as error:
                if setting not in self._wrong:
                    log.warning(
                        "%s is not %d, which %s mode needs, and cannot be set (%s)",
                        setting.name,
                        setting.value,
                        settings.mode.value,
                        error.strerror,
                    )
                self._wrong.add(setting)
            else:
                self._wrong.discard(setting)

    def _make(self, setting: KernelSetting) -> None:
        """Raise OSError where it cannot be made."""
        if not setting.is_met_by(int(self._read(setting.path))):
            (self._root / setting.path).write_text(str(setting.value))
            log.info("%s is %d now", setting.name, setting.value)

    def _read(self, path: PurePath) -> str:
        return (self._root / path).read_text().strip()
