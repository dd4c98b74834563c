"""The kernel's drop monitor (generic netlink NET_DM), which sends an alert for each dropped packet.

Facts: net/core/drop_monitor.c. One monitor serves all network namespaces, and can be controlled in
the initial one only. Its settings cannot change while it is on. It stays on when the process that
switched it on ends, so `stop_abandoned` recognizes pyproxy's by its settings. Joining its group
needs CAP_SYS_ADMIN since Linux 6.7 and the stable releases of that time. It reports no packet that
is dropped before it has a link-layer header, as by a rule in the hook output.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pyproxy.errors import KernelError, PermissionKernelError, StaleStateError, TransientKernelError
from pyproxy.netlink import generic
from pyproxy.netlink.attributes import attribute, attribute_map
from pyproxy.netlink.drop_alerts import Alert, read_alerts
from pyproxy.netlink.generic import GENERIC_SIZE
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.sockets import NETLINK_GENERIC, NetlinkSocket

_NAME, _VERSION = "NET_DM", 2
_CONFIG, _START, _STOP, _CONFIG_GET = 2, 3, 4, 6
_ALERT_MODE, _TRUNC_LEN, _QUEUE_LEN = 1, 9, 11
# The one family whose group has a fixed number (net/netlink/genetlink.c).
_GROUP = 1

_Settings = Mapping[int, int]
"""Values of the attributes ALERT_MODE, TRUNC_LEN and QUEUE_LEN."""

# Room for link-layer, IPv6 and extension headers, and ports. No other program is likely to choose
# both values, so they identify a monitor that pyproxy switched on.
_PACKET_BYTES, _QUEUE = 134, 250
_OURS: _Settings = {_ALERT_MODE: 1, _TRUNC_LEN: _PACKET_BYTES, _QUEUE_LEN: _QUEUE}
# The kernel's: no packets, whole ones, and a thousand of them.
_DEFAULTS: _Settings = {_ALERT_MODE: 0, _TRUNC_LEN: 0, _QUEUE_LEN: 1000}
_RECEIVE_BUFFER = 1 << 20

ALERTS_PER_SECOND = 2000
"""Alerts that are read at most; the kernel discards those that do not fit in the buffer then."""

# Only the initial network namespace has the sysctls that are not per namespace.
_INITIAL = "/proc/sys/net/core/netdev_max_backlog"
_SOCKETS = "/proc/net/netlink"


class DropMonitor:
    """The monitor, which is on from `start` to `close`.

    Raises KernelError with the reason, in words for the user, if it cannot be used. It blocks only
    for requests to the kernel.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second, self._left = 0.0, 0
        self._started = False
        self._before: _Settings = _DEFAULTS
        self._control = _Control()
        self._socket = NetlinkSocket(NETLINK_GENERIC, "drop monitor", _RECEIVE_BUFFER)
        try:
            self._join()
            self._take()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Switch the monitor on."""
        if not self._control.start():  # another program did so since
            raise self._taken()
        self._started = True

    def close(self) -> None:
        """Switch the monitor off if this object switched it on. Idempotent."""
        if self._started:
            self._started = False
            self._control.stop(self._before)
        elif self._before != _DEFAULTS:
            # Refused without harm if another program has switched it on.
            with suppress(KernelError):
                self._control.configure(self._before)
        self._socket.close()
        self._control.close()

    def read(self) -> tuple[Sequence[Alert], bool]:
        """Return the alerts that wait, and whether others were lost; it does not block.

        ALERTS_PER_SECOND bounds the work. Raises KernelError.
        """
        now = self._clock()
        if now - self._second >= 1.0:
            self._second, self._left = now, ALERTS_PER_SECOND
        found: list[Alert] = []
        lost = False
        try:
            for data in self._datagrams():
                found += read_alerts(data, self._control.family)
        except KernelError as error:
            if error.errno != errno.ENOBUFS:
                raise
            lost = True
        return found, lost

    def _datagrams(self) -> Iterator[bytes]:
        waiting = self._socket.receive_waiting()
        while self._left > 0:
            data = next(waiting, b"")
            if not data:
                return
            self._left -= 1
            yield data

    def _join(self) -> None:
        try:
            self._socket.join(_GROUP)
        except PermissionKernelError as error:
            message = "reading the kernel's drop monitor needs CAP_SYS_ADMIN"
            raise PermissionKernelError(message, error.errno) from error

    def _take(self) -> None:
        before = self._control.settings()
        if not self._control.configure(_OURS):
            self._control.stop_abandoned(self._socket.port)
            if not self._control.configure(_OURS):
                raise self._taken()
        elif before != _OURS:
            self._before = before

    def _taken(self) -> TransientKernelError:
        return TransientKernelError(_in_use(self._socket.port), errno.EBUSY)


def stop_abandoned() -> None:
    """Switch off a monitor that a killed process of pyproxy left on, and no other. Blocks.

    Raises KernelError if another program has the monitor, or if there is none.
    """
    control = _Control()
    try:
        if control.settings() == _OURS:
            control.stop_abandoned(0)
    finally:
        control.close()


class _Control:
    """Requests to the monitor. Raises KernelError if the kernel has none."""

    def __init__(self) -> None:
        self._requests = Requests(NETLINK_GENERIC, "drop monitor")
        try:
            self.family = self._find()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._requests.close()

    def settings(self) -> _Settings:
        """Return the present settings."""
        (reply, *_) = self._requests.get(generic.command(self.family, _CONFIG_GET, _VERSION))
        fields = attribute_map(reply[GENERIC_SIZE:])
        return {kind: int.from_bytes(fields.get(kind, b""), sys.byteorder) for kind in _DEFAULTS}

    def configure(self, settings: _Settings) -> bool:
        """Change the settings; return false if the monitor is on."""
        mode = attribute(_ALERT_MODE, bytes((settings[_ALERT_MODE],)))
        lengths = (
            attribute(kind, struct.pack("=I", settings[kind])) for kind in (_TRUNC_LEN, _QUEUE_LEN)
        )
        return self._command(_CONFIG, errno.EBUSY, mode, *lengths)

    def start(self) -> bool:
        """Switch the monitor on; return false if it is on already."""
        return self._command(_START, errno.EAGAIN)

    def stop(self, settings: _Settings) -> None:
        """Switch the monitor off, if it is on, and restore the settings of another program."""
        self._command(_STOP, errno.EAGAIN)
        self.configure(settings)

    def stop_abandoned(self, own_port: int) -> None:
        """Stop a monitor of pyproxy that nothing reads; raises TransientKernelError for others.

        `own_port` is the port of the caller's socket, which may have joined already.
        """
        if _readers(own_port) or self.settings() != _OURS:
            raise TransientKernelError(_in_use(own_port), errno.EBUSY)
        self.stop(_DEFAULTS)

    def _command(self, number: int, refused: int, *attributes: bytes) -> bool:
        """Send a command; return false at the errno that says that the monitor is on or off."""
        request = generic.command(self.family, number, _VERSION, b"".join(attributes))
        for failed in self._requests.send([request]):
            if failed.errno == refused:
                return False
            raise failed.error
        return True

    def _find(self) -> int:
        try:
            # The kernel loads the module drop_monitor for it.
            return generic.read_family_id(self._requests.get(generic.get_family(_NAME)))
        except StaleStateError as error:
            raise StaleStateError(_no_monitor(), error.errno) from error


def _no_monitor() -> str:
    if Path(_INITIAL).exists():
        return "this kernel has no drop monitor (module drop_monitor)"
    return "the kernel's drop monitor works only in the initial network namespace"


def _in_use(own_port: int) -> str:
    readers = _readers(own_port)
    if not readers:
        return "another program has left the kernel's drop monitor on: switch it off first"
    return f"{_process_name(readers[0])} uses the kernel's drop monitor, which has room for one"


def _readers(own_port: int) -> list[int]:
    """Return the inodes of the other sockets in the monitor's group."""
    found = []
    for line in Path(_SOCKETS).read_text().splitlines()[1:]:
        # sk, Eth (the protocol), Pid (the port), Groups, ..., Inode
        fields = line.split()
        if (
            int(fields[1]) == NETLINK_GENERIC
            and int(fields[3], 16) & 1 << (_GROUP - 1)
            and int(fields[2]) != own_port
        ):
            found.append(int(fields[-1]))
    return found


def _process_name(inode: int) -> str:
    target = f"socket:[{inode}]"
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(each) == target for each in (folder / "fd").iterdir()):
                return f"{(folder / 'comm').read_text().strip()} (process {folder.name})"
        except OSError:  # it has ended, or belongs to another user
            continue
    return "another process"
