"""A thread that listens for what others write to our tables."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from pyproxy.dataplane.interface import Drift
from pyproxy.errors import KernelError
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class Watched(Protocol):
    """A dataplane, as far as this thread is concerned."""

    def wait_for_drift(self) -> Drift | None:
        """Wait for somebody else's write; None at the end."""
        ...


def follow(dataplane: Watched, emit: Callable[[Drift], None]) -> None:
    """Begin to pass on each drift, until the dataplane is closed."""
    Worker("drift", lambda: _follow(dataplane, emit)).start()


def _follow(dataplane: Watched, emit: Callable[[Drift], None]) -> None:
    while True:
        try:
            drift = dataplane.wait_for_drift()
        except KernelError as error:
            log.warning("cannot hear what others write to the kernel, trying on: %s", error)
            time.sleep(_RETRY_SECONDS)
            drift = Drift("")
        if drift is None:
            return
        emit(drift)
