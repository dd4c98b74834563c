"""Drop each capability that the agent does not need.

CAP_NET_ADMIN is enough for all kernel writes: nf_tables, IPVS, conntrack, devices. It also allows
nf_tables' notifications, large socket buffers and the namespace's sysctls. iptables-legacy needs
CAP_NET_RAW too, in iptables mode and for a takeover from kube-proxy. Facts: capabilities(7), and
net/ in the kernel's sources.

Capabilities belong to threads, so the agent drops them before it starts any thread.
"""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

from pyproxy.config.settings import Settings
from pyproxy.dataplane import modes
from pyproxy.dataplane.mode import Capability

log = logging.getLogger(__name__)

# Numbers of linux/prctl.h and linux/capability.h, which Python's library does not have.
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
_CAPABILITY_VERSION = 0x20080522  # version 3, the one with 64 bits
_LAST = Path("/proc/sys/kernel/cap_last_cap")
_SETS = ctypes.c_uint32 * 6
"""Effective, permitted and inheritable for capabilities 0 to 31, then for 32 to 63."""

_SETPCAP = 8
_PRIVILEGED_PORTS = 1024


def needed(
    settings: Settings, to_remove: frozenset[Capability] = frozenset()
) -> frozenset[Capability]:
    """Return the capabilities that the agent needs.

    CAP_NET_BIND_SERVICE is among them only if a flag names a port below 1024. `to_remove` are those
    that the removal of other modes' rules needs.
    """
    wanted = {Capability.NET_ADMIN, *modes.of(settings.mode).capabilities, *to_remove}
    if settings.takeover:
        # iptables-legacy reads and writes through a raw socket.
        wanted.add(Capability.NET_RAW)
    for place in (settings.serving.health, settings.serving.metrics, settings.ui):
        if place is not None and 0 < place.port < _PRIVILEGED_PORTS:
            wanted.add(Capability.NET_BIND_SERVICE)
    return frozenset(wanted)


def needed_to_remove() -> frozenset[Capability]:
    """Return the capabilities that the removal of all modes' rules needs."""
    return frozenset().union(*(mode.capabilities_to_remove() for mode in modes.MODES.values()))


def missing(wanted: frozenset[Capability]) -> tuple[str, ...]:
    """Return the names of the capabilities that this thread has not, such as CAP_NET_RAW."""
    effective, _ = _Rights().held()
    return tuple(f"CAP_{each.name}" for each in sorted(wanted) if not effective >> each & 1)


def keep_only(wanted: frozenset[Capability]) -> None:
    """Drop all other capabilities of this thread, of threads that it starts, and of programs.

    Logs a warning and keeps them if the kernel refuses.
    """
    try:
        _Rights().keep_only(wanted)
    except OSError as error:
        log.warning("cannot drop unneeded capabilities, keeping them: %s", error)


class _Rights:
    """The capabilities of this thread, through libc. Every method raises OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def keep_only(self, wanted: frozenset[Capability]) -> None:
        effective, permitted = self.held()
        # A capability that is not permitted cannot be added, and capset would fail with EPERM.
        kept = permitted & sum(1 << each for each in wanted)
        # Only CAP_SETPCAP may shrink the bounding set. `_hold` drops it, so this comes first.
        if effective >> _SETPCAP & 1:
            self._bound(kept)
        # Without this a program run by root regains the whole bounding set.
        self._prctl(_PR_SET_NO_NEW_PRIVS, 1)
        self._prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        self._hold(kept)
        # A program run by another user than root has ambient capabilities only.
        for each in wanted:
            if kept >> each & 1:
                self._prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, each)

    def held(self) -> tuple[int, int]:
        """Return the effective and the permitted capabilities, each as bits."""
        sets = _SETS()
        self._check(self._libc.capget(_header(), sets), "capget")
        return sets[0] | sets[3] << 32, sets[1] | sets[4] << 32

    def _hold(self, kept: int) -> None:
        # Inheritable too, because only a permitted and inheritable capability can become ambient.
        low, high = kept & 0xFFFFFFFF, kept >> 32
        sets = _SETS(low, low, low, high, high, high)
        self._check(self._libc.capset(_header(), sets), "capset")

    def _bound(self, kept: int) -> None:
        for number in range(int(_LAST.read_text()) + 1):
            if not kept >> number & 1:
                self._prctl(_PR_CAPBSET_DROP, number)

    def _prctl(self, option: int, *arguments: int) -> None:
        # prctl is variadic and reads unsigned longs, and the kernel returns EINVAL for some options
        # if an unused argument is not 0.
        words = [ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]]
        self._check(self._libc.prctl(option, *words), "prctl")

    @staticmethod
    def _check(result: int, call: str) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{call}: {os.strerror(number)}")


def _header() -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)  # 0 is the calling thread
