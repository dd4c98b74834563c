"""Listening on a socket or port that another process may still have."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Seconds between two tries, as those of the health and metrics ports."""


def listen_later(listen: Callable[[], None], place: str, stopping: threading.Event) -> bool:
    """Call `listen` every second until it raises no OSError.

    Logs the success. Returns False, at once, when `stopping` is set.
    """
    while not stopping.wait(RETRY_SECONDS):
        try:
            listen()
        except OSError as error:
            log.debug("still cannot listen on %s: %s", place, error.strerror or error)
        else:
            log.info("listening on %s", place)
            return True
    return False
