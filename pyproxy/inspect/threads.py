"""A thread for each client, a few at a time: who asks too much waits for nobody else."""

from __future__ import annotations

import logging
import socketserver
import threading
from typing import Any

log = logging.getLogger(__name__)


class BoundedThreads(socketserver.ThreadingMixIn):
    """Beside a server of socketserver: clients beyond `clients` are turned away at once."""

    clients = 16
    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._free = threading.BoundedSemaphore(self.clients)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, where one is free."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[attr-defined]
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and be free again."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Tell of a client that left, or took too long."""
        log.debug("a client left, or took too long", exc_info=True)
