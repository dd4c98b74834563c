"""The HTTP base of socket and page: GET requests, bounded in size, time and number."""

from __future__ import annotations

import io
import ipaddress
import logging
import socket
import socketserver
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.connections import Connections
from pyproxy.inspect.turns import Turn

log = logging.getLogger(__name__)

HEAD_SIZE = 16 * 1024
"""Bytes of a request's head; the rest is not read."""

HEAD_SECONDS = 5.0
"""Seconds from the connection to the end of the request's head."""

CHUNK = 64 * 1024
"""Bytes of a response that are made before some are sent."""

RETRY_AFTER = "1"

ACCEPT_PAUSE = 0.005
"""Seconds between two connections of a server: reading a request takes a thread and half a
millisecond, which clients that connect in a loop could take from the agent all the time."""

FAILURE_PAUSE = 0.25
"""Seconds until the next try to accept. After EMFILE the connection still waits, and poll would
return at once."""

_REFUSAL = (
    b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\n"
    b"Retry-After: 1\r\n\r\ntoo many clients are connected: try again\n"
)


class ClientGoneError(OSError):
    """The client has closed the connection, or does not read the response."""


class RequestHandler(BaseHTTPRequestHandler):
    """Dispatches GET requests to `get` and turns its errors into error responses.

    `timeout` is in seconds without a byte. `usage_status` is the status for a wrong request,
    `extra_headers` are part of every response.
    """

    timeout = 10.0
    # http.server would name itself and its version of Python.
    server_version = "pyproxy"
    sys_version = ""
    # Of a request whose version cannot be read. The default of http.server has no headers.
    default_request_version = "HTTP/1.0"
    server: BoundedThreads
    usage_status: ClassVar[HTTPStatus] = HTTPStatus.BAD_REQUEST
    extra_headers: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def get(self, path: str, query: str) -> None:
        """Respond to one request. May raise PyproxyError and ValueError before it responds."""

    @abstractmethod
    def fail(self, status: HTTPStatus, message: str) -> None:
        """Send an error response."""

    def setup(self) -> None:
        """Bound the request's head, which BaseHTTPRequestHandler reads line by line."""
        super().setup()
        self.rfile = io.BufferedReader(_Head(self.connection))
        self.wfile = _Body(self.connection)
        self._responding = False

    def do_GET(self) -> None:
        """Respond to one request, whatever `get` raises."""
        self.server.connections.head_read(self.connection)
        target = urlsplit(self.path)
        try:
            self.get(target.path, target.query)
        except (UsageError, ValueError) as error:  # msgspec.ValidationError is a ValueError
            self._fail(self.usage_status, str(error))
        except PyproxyError as error:
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except ClientGoneError:  # see handle_error
            raise
        except OSError as error:
            # Such as EMFILE, when the agent itself needs a file or a socket for the response.
            log.warning("cannot respond to GET %s: %s", target.path, error)
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, f"the agent cannot respond: {error}")
        except Exception as error:
            log.exception("cannot respond to GET %s: this is a bug in pyproxy", target.path)
            self._fail(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"internal error ({type(error).__name__}): see the agent's log",
            )

    def _fail(self, status: HTTPStatus, message: str) -> None:
        # Within a response, only the end of the connection shows the client that it is incomplete.
        if self._responding:
            log.debug("a response ends early: %s", message)
        else:
            self.fail(status, message)

    def respond(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        """Send a whole response."""
        self.send_head(status, content_type, len(body))
        self.wfile.write(body)

    def send_head(self, status: HTTPStatus, content_type: str, length: int | None = None) -> None:
        """Send status and headers; without `length` the body ends with the connection."""
        self._responding = True
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        # HTTP/1.0, the default of http.server, has one request per connection.
        if length is not None:
            self.send_header("Content-Length", str(length))
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", RETRY_AFTER)
        for name, value in self.extra_headers.items():
            self.send_header(name, value)
        self.end_headers()

    def stream(self, body: Iterator[bytes], content_type: str, turn: Turn) -> None:
        """Send a body as it is made, in turns with other askers.

        A slow client holds no turn, and one part of the body in memory.
        """
        with turn:
            chunk = bytearray()
            for part in body:
                chunk += part
                if len(chunk) >= CHUNK or turn.is_over:
                    with turn.paused():
                        self._send_chunk(chunk, content_type)
                    chunk = bytearray()
        self._send_chunk(chunk, content_type)

    def _send_chunk(self, chunk: bytearray, content_type: str) -> None:
        # The head is sent with the first chunk, so that an error before it has its own status.
        if not self._responding:
            self.send_head(HTTPStatus.OK, content_type)
        self.wfile.write(chunk)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Respond to a request that http.server rejects, as to every other one."""
        status = HTTPStatus(code)
        self.fail(status, message or status.phrase)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log requests at debug level instead of on stderr."""
        log.debug(format, *args)

    def address_string(self) -> str:
        """Return the client's address for the log; a Unix socket's client has none."""
        return super().address_string() if self.client_address else "a local client"


class _Head(io.RawIOBase):
    """Reads a request's head; ends after `HEAD_SIZE` bytes, raises after `HEAD_SECONDS`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._left = HEAD_SIZE
        self._deadline = time.monotonic() + HEAD_SECONDS

    def readable(self) -> bool:
        """Return true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes into a buffer. Raises TimeoutError."""
        wanted = memoryview(buffer)[: self._left]
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request's head is late")
        timeout = self._connection.gettimeout()
        self._connection.settimeout(left)
        try:
            read = self._connection.recv_into(wanted) if wanted else 0
        finally:
            self._connection.settimeout(timeout)
        self._left -= read
        return read


class _Body(io.BufferedIOBase):
    """Writes a response. Raises ClientGoneError."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        """Return true."""
        return True

    def write(self, data: Any) -> int:
        """Write all of some bytes. Blocks until the kernel has them. Raises ClientGoneError."""
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise ClientGoneError(error.errno, error.strerror) from error
        return memoryview(data).nbytes


class BoundedThreads(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Serves each client of a socketserver in a thread of its own, `clients` at most.

    `connections` chooses which connections end when there are more.
    """

    clients = 16
    # A stream lasts until its client leaves, and must not delay the exit of the agent.
    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.connections = Connections(self.clients)
        super().__init__(*args, **kwargs)

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection. Pauses before it raises OSError, which socketserver ignores."""
        try:
            return super().get_request()
        except OSError as error:
            log.debug("cannot accept a client: %s", error.strerror)
            time.sleep(FAILURE_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a client, or refuse it if all are busy."""
        time.sleep(ACCEPT_PAUSE)
        # Not blocking: this is the thread that accepts, and `stop` waits for it.
        if not self.connections.add(request, peer_of(client_address)):
            with suppress(OSError):
                request.settimeout(0)
                request.sendall(_REFUSAL)
            self.shutdown_request(request)
            return
        # From here on, process_request_thread removes it, unless no thread starts.
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # "can't start new thread": RLIMIT_NPROC or the pids cgroup
            self.connections.remove(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client in its thread, then make room for another one."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.remove(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a failed request at debug level."""
        log.debug("a client closed its connection or timed out", exc_info=True)


def peer_of(client_address: Any) -> str:
    """Return the peer that a connection counts for: an IPv4 address, or an IPv6 /64 (RFC 4291).

    Empty for a Unix socket's client.
    """
    if not isinstance(client_address, tuple):
        return ""
    address = ipaddress.ip_address(client_address[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
