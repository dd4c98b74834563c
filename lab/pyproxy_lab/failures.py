"""Unexpected exceptions of work that goes on: each is logged once, however often it is repeated.

One object that the lab's code does not understand must not end the work on all others, and a retry
every two seconds must not fill the log.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class FailureLog:
    """Remembers the messages that are logged until the work succeeds.

    Belongs to one event loop. Its size is bounded by the number of different messages, so each
    message names an object, and is forgotten once the object is gone.
    """

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def report(self, message: str) -> None:
        """Log the exception that is being handled, unless this message has been logged."""
        if message not in self._logged:
            log.exception("%s", message)
        self._logged.add(message)

    def forget(self, message: str) -> None:
        """Log this message again at the next failure."""
        self._logged.discard(message)
