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

import msgspec

from pyproxy.config.settings import Conntrack, Settings

log = logging.getLogger(__name__)

_NETFILTER = PurePath("proc/sys/net/netfilter")
_HASH_SIZE = PurePath("sys/module/nf_conntrack/parameters/hashsize")
_ENTRIES_PER_BUCKET = 4
_OOM_SCORE = PurePath("proc/self/oom_score_adj")


class Setting(msgspec.Struct, frozen=True):
    """A file below / with one number in it; `at_least` leaves a larger one as it is."""

    path: PurePath
    value: int
    at_least: bool = False

    @property
    def name(self) -> str:
        """What people know it by: a sysctl's name, or the file's."""
        parts = self.path.parts
        return ".".join(parts[2:]) if parts[:2] == ("proc", "sys") else f"/{self.path}"

    def is_met_by(self, value: int) -> bool:
        """Tell whether nothing is to be done where the file holds `value`."""
        return value >= self.value if self.at_least else value == self.value


def wanted(settings: Settings, cores: int) -> tuple[Setting, ...]:
    """List the settings for a machine with so many CPU cores, the table of connections first."""
    oom_score = Setting(_OOM_SCORE, settings.oom_score_adj)
    return (*_conntrack(settings.conntrack, cores), oom_score)


def _conntrack(given: Conntrack, cores: int) -> Iterator[Setting]:
    if given.max_per_core:
        limit = max(given.max_per_core * cores, given.min)
        yield Setting(_NETFILTER / "nf_conntrack_max", limit, at_least=True)
        yield Setting(_HASH_SIZE, limit // _ENTRIES_PER_BUCKET, at_least=True)
    for name, seconds in (
        ("nf_conntrack_tcp_timeout_established", given.tcp_established_timeout),
        ("nf_conntrack_tcp_timeout_close_wait", given.tcp_close_wait_timeout),
        ("nf_conntrack_udp_timeout", given.udp_timeout),
        ("nf_conntrack_udp_timeout_stream", given.udp_stream_timeout),
    ):
        if seconds:
            # The kernel counts whole seconds, and less than one must not become none.
            yield Setting(_NETFILTER / name, max(1, int(seconds)))
    if given.tcp_be_liberal:
        yield Setting(_NETFILTER / "nf_conntrack_tcp_be_liberal", 1)


class Machine:
    """The files of settings below `root`, which is / on a machine."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

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
        missing: list[str] = []
        forbidden: list[str] = []
        for setting in wanted(settings, self.cores()):
            try:
                self._make(setting)
            except FileNotFoundError:
                missing.append(setting.name)
            except OSError as error:
                forbidden.append(f"{setting.name} = {setting.value} ({error.strerror})")
        if missing:
            log.warning(
                "left as the kernel has them: %s: load the module nf_conntrack before the start",
                ", ".join(missing),
            )
        if forbidden:
            log.warning(
                "this machine does not let us set %s: set them on the node where they matter",
                ", ".join(forbidden),
            )

    def _make(self, setting: Setting) -> None:
        """Raise OSError where it cannot be made."""
        if not setting.is_met_by(int(self._read(setting.path))):
            (self._root / setting.path).write_text(str(setting.value))
            log.info("%s is %d now", setting.name, setting.value)

    def _read(self, path: PurePath) -> str:
        return (self._root / path).read_text().strip()
