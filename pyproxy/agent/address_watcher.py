"""The thread that waits for changes of the node's addresses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pyproxy.errors import KernelError
from pyproxy.netlink.address_monitor import LocalAddressMonitor
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_END_SECONDS = 5.0


class AddressWatcher:
    """Calls `emit`, in a thread of its own, after each change that the monitor reports.

    Changes that the kernel reports together are one call. `emit` must not block.
    """

    def __init__(self, monitor: LocalAddressMonitor, emit: Callable[[], None]) -> None:
        self._monitor = monitor
        self._emit = emit
        self._worker = Worker("addresses", self._watch)

    def start(self) -> None:
        """Start the thread. Does not block."""
        self._worker.start()

    def stop(self) -> None:
        """End the thread, and wait for it. The monitor stays open."""
        self._monitor.end()
        self._worker.end(_END_SECONDS)

    def _watch(self) -> None:
        while True:
            try:
                changed = self._monitor.wait()
            except KernelError as error:
                log.warning("cannot read notifications of address changes, retrying: %s", error)
                time.sleep(_RETRY_SECONDS)
                # Notifications may be lost, so the agent reads the addresses.
                changed = True
            except Exception:
                # A bug, after which this is called again. The notifications are lost.
                self._emit()
                raise
            if not changed:
                return
            self._emit()
