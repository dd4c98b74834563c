"""The HTTP base of socket and page: GET requests, error responses, bounded threads."""

from __future__ import annotations

import logging
import socketserver
import threading
from abc import abstractmethod
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pyproxy.errors import PyproxyError, UsageError

log = logging.getLogger(__name__)


class RequestHandler(BaseHTTPRequestHandler):
    """Dispatches GET requests to `get` and turns its errors into error responses.

    `timeout` is in seconds without a byte. `usage_status` is the status for a wrong request,
    `extra_headers` are part of every response.
    """

    timeout = 10.0
    usage_status: ClassVar[HTTPStatus] = HTTPStatus.BAD_REQUEST
    extra_headers: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def get(self, path: str, query: str) -> None:
        """Respond to one request. May raise PyproxyError and ValueError before it responds."""

    @abstractmethod
    def fail(self, status: HTTPStatus, message: str) -> None:
        """Send an error response."""

    def do_GET(self) -> None:
        """Respond to one request, whatever `get` raises."""
        target = urlsplit(self.path)
        try:
            self.get(target.path, target.query)
        except (UsageError, ValueError) as error:  # msgspec.ValidationError is a ValueError
            self.fail(self.usage_status, str(error))
        except PyproxyError as error:
            self.fail(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except OSError:  # the client closed the connection: see handle_error
            raise
        except Exception as error:
            log.exception("cannot respond to GET %s: this is a bug in pyproxy", target.path)
            self.fail(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"internal error ({type(error).__name__}): see the agent's log",
            )

    def respond(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        """Send a whole response."""
        self.send_head(status, content_type, len(body))
        self.wfile.write(body)

    def send_head(self, status: HTTPStatus, content_type: str, length: int | None = None) -> None:
        """Send status and headers; without `length` the body ends with the connection."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        # HTTP/1.0, the default of http.server, has one request per connection.
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in self.extra_headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log requests at debug level instead of on stderr."""
        log.debug(format, *args)

    def address_string(self) -> str:
        """Return the client's address for the log; a Unix socket's client has none."""
        return super().address_string() if self.client_address else "a local client"


class BoundedThreads(socketserver.ThreadingMixIn):
    """Serves each client of a socketserver in a thread of its own, `clients` at most.

    Further connections are closed at once, so that a flood of clients cannot use up the agent's
    threads.
    """

    clients = 16
    # A stream lasts until its client leaves, and must not delay the exit of the agent.
    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._free = threading.BoundedSemaphore(self.clients)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a client, or close the connection if all are busy."""
        # Not blocking: this is the thread that accepts, and `stop` waits for it.
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[attr-defined]
            return
        # From here on, process_request_thread releases the slot, unless no thread starts.
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # "can't start new thread": RLIMIT_NPROC or the pids cgroup
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client in its thread, then release the slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a failed request at debug level."""
        log.debug("a client closed its connection or timed out", exc_info=True)
