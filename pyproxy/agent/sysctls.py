"""The kernel's settings that a node needs for its proxy, beside the rules.

They are those of kube-proxy v1.36: the table of connections is made larger where it is smaller
than asked for, and never smaller; timeouts are set to what is configured. A machine may forbid any
of it, as a container does with a /proc/sys that is read-only: that is told, and the agent goes on.

What IPVS needs, and why:

- `vs.conntrack`: connections that IPVS carries are in conntrack, so that rules know them and
  postrouting can masquerade them.
- `vs.conn_reuse_mode` 1: a client that takes the same source port again is a new connection, and
  comes to an endpoint that serves. kube-proxy leaves it alone since the kernel, 5.9, does this
  without a delay; here it is put right where somebody has changed it.
- `vs.expire_nodest_conn`: a connection whose endpoint is gone ends, and its client may connect
  again, in place of waiting for a timeout.
- `vs.expire_quiescent_template`: session affinity does not hold on to an endpoint of weight 0.
- `ip_forward`: IPVS passes packets on only where the node does.
- `arp_ignore` and `arp_announce`, with strictARP: the node has all service addresses on a device,
  and must neither answer ARP for them elsewhere nor ask with them, where another speaks for them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

import msgspec

from pyproxy.config.modes import ProxyMode
from pyproxy.config.settings import Conntrack, Settings

log = logging.getLogger(__name__)

_NETFILTER = PurePath("proc/sys/net/netfilter")
_IPV4 = PurePath("proc/sys/net/ipv4")
_IPVS = _IPV4 / "vs"
_HASH_SIZE = PurePath("sys/module/nf_conntrack/parameters/hashsize")
_ENTRIES_PER_BUCKET = 4
_OOM_SCORE = PurePath("proc/self/oom_score_adj")


class Setting(msgspec.Struct, frozen=True):
    """A file below / with one number in it; `at_least` leaves a larger one as it is."""

    path: PurePath
    value: int
    at_least: bool = False

    @property
    def module(self) -> str:
        """The kernel's module that has it."""
        return "ip_vs" if _IPVS in self.path.parents else "nf_conntrack"

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
    return (*_conntrack(settings.conntrack, cores), *of_mode(settings), oom_score)


def of_mode(settings: Settings) -> tuple[Setting, ...]:
    """List those that the mode cannot do without, for as long as it serves."""
    if settings.mode is not ProxyMode.IPVS:
        return ()
    needed = [
        Setting(_IPVS / "conntrack", 1),
        Setting(_IPVS / "conn_reuse_mode", 1),
        Setting(_IPVS / "expire_nodest_conn", 1),
        Setting(_IPVS / "expire_quiescent_template", 1),
        Setting(_IPV4 / "ip_forward", 1),
    ]
    if settings.ipvs.strict_arp:
        needed += [
            Setting(_IPV4 / "conf/all/arp_ignore", 1),
            Setting(_IPV4 / "conf/all/arp_announce", 2),
        ]
    return tuple(needed)


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
        self._wrong: set[Setting] = set()

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
        missing: list[Setting] = []
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

    def _make(self, setting: Setting) -> None:
        """Raise OSError where it cannot be made."""
        if not setting.is_met_by(int(self._read(setting.path))):
            (self._root / setting.path).write_text(str(setting.value))
            log.info("%s is %d now", setting.name, setting.value)

    def _read(self, path: PurePath) -> str:
        return (self._root / path).read_text().strip()
