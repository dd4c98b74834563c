"""An HTTP client for the Kubernetes API that returns bytes.

Credentials and connections come from `access`. Each request goes to the server that responded
last, and to the next one if no connection can be made. Nothing else is retried here: the caller
decides when to try again.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProxyError,
    SSLError,
)

from pyproxy.errors import UsageError
from pyproxy.model.address import Backend
from pyproxy.source.api_errors import ApiStatusError, UnreachableError, reason, status_error
from pyproxy.source.body import LARGEST_ANSWER, read_body
from pyproxy.source.connections import Connection, connect, peer, pool_classes
from pyproxy.source.media_types import JSON_TYPE

if TYPE_CHECKING:
    from pyproxy.source.access import Access

__all__ = [
    "CONNECT_TIMEOUT",
    "HEAD_TIMEOUT",
    "RESPONSE_TIMEOUT",
    "ApiStatusError",
    "Client",
    "RequestObserver",
    "UnreachableError",
]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 4.0
"""Seconds to connect; two dead servers cost less than ten seconds."""

RESPONSE_TIMEOUT = 60.0
"""Seconds without a byte before a response is abandoned; the API server's own limit is 60."""

HEAD_TIMEOUT = 8.0
"""Seconds until one of several servers must have sent the head of its response.

A server that hangs costs this much. A single one has RESPONSE_TIMEOUT, as there is no other to try.
"""

# Errors before the request was sent, after which even a POST may go to the next server.
_NOT_SENT = (NewConnectionError, ConnectTimeoutError, ProxyError)
# urllib3 raises SSLError for a failed handshake, but also for a TLS error within the response.
_REPEATABLE = (*_NOT_SENT, SSLError)


class RequestObserver(Protocol):
    """Metrics of requests. Its methods never block, are thread-safe, and count each call."""

    def count_request(self, method: str, host: str, code: str) -> None:
        """Count one request; `code` is the HTTP status, or "<error>" without a response."""
        ...

    def observe_request(self, method: str, host: str, duration: float, size: int) -> None:
        """Record the seconds from a request to the head of its response, and its body's bytes."""
        ...

    def observe_response(self, method: str, host: str, size: int) -> None:
        """Record the decompressed bytes of a response that was read to its end."""
        ...


class _Target(NamedTuple):
    """Servers and the credentials for them: one value, so that no server gets another one's."""

    hosts: tuple[str, ...]
    access: Access


class _Request(NamedTuple):
    """One request; `target` is the path and the query."""

    method: str
    target: str
    body: bytes | None
    accept: str
    compressed: bool = False


class Client:
    """Requests to one of several equivalent API servers, from any thread.

    `load` reads the credentials, and without `hosts` the server too. It is called again when a file
    that it read has changed, and when the server responds 401. After a 5xx response the next
    request goes to the next server; the failed request is not repeated here. Raises UsageError from
    `load`.
    """

    def __init__(
        self,
        load: Callable[[], Access],
        hosts: tuple[str, ...] = (),
        observer: RequestObserver | None = None,
    ) -> None:
        self._load = load
        self._observer = observer
        self._lock = threading.Lock()
        # Weak, because urllib3 drops connections without a callback. The lock guards it, because an
        # iteration fails if another thread adds an element.
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._reloading = threading.Lock()
        self._reload_error = ""
        self._servers: set[Backend] = set()
        self.clock_offset = 0.0
        """Seconds that the server's clock was ahead of this one at its last response."""
        self._given = tuple(host.rstrip("/") for host in hosts)
        self.moves = 0
        """How often `load` has returned another server: its versions may be of another history."""
        self._current = 0
        self._last_host = ""
        access = load()
        self._files = access.files
        self._target = self._made_of(access)

    def get(
        self,
        path: str,
        query: Mapping[str, str],
        timeout: float = RESPONSE_TIMEOUT,
        accept: str = JSON_TYPE,
        *,
        compressed: bool = False,
    ) -> BaseHTTPResponse:
        """Send a GET; the body of the response is unread, and the caller closes it.

        `timeout` is the longest silence in seconds, before the response and within it. `accept` is
        the header Accept. A `compressed` body may be in gzip, which the API server does with lists
        of more than 128 KiB; its readers decompress it. Blocks. Raises UnreachableError,
        ApiStatusError.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        return self._request(_Request("GET", target, None, accept, compressed), timeout)

    def read(
        self, response: BaseHTTPResponse, limit: int, now: Callable[[], float] = time.monotonic
    ) -> bytes:
        """Return the body of a response of `get`, and record its size. Blocks.

        Raises the errors of `read_body`.
        """
        return self._read("GET", response, limit, now)

    def post(self, path: str, body: bytes, timeout: float = RESPONSE_TIMEOUT) -> bytes:
        """Create an object from JSON and return the body of the response. Blocks.

        Raises UnreachableError, ApiStatusError, TooLargeError.
        """
        return self._whole("POST", path, body, timeout)

    def delete(self, path: str, body: bytes, timeout: float = RESPONSE_TIMEOUT) -> bytes:
        """Delete an object, with DeleteOptions in JSON, as `post`."""
        return self._whole("DELETE", path, body, timeout)

    def _whole(self, method: str, path: str, body: bytes, timeout: float) -> bytes:
        response = self._request(_Request(method, path, body, JSON_TYPE), timeout)
        try:
            return self._read(method, response, LARGEST_ANSWER, time.monotonic)
        except (HTTPError, OSError) as error:
            raise UnreachableError(f"{self.host}: {reason(error)}") from error
        finally:
            response.close()

    def connect(self, timeout: float) -> Connection:
        """Open a connection to the server for another protocol, as `connections.connect`."""
        self._renew()
        hosts, access = self._target
        host = hosts[self._current]
        try:
            return connect(access.pool(host), host, access.authorization(), timeout)
        except (HTTPError, OSError) as error:
            raise UnreachableError(f"{host}{self._via(host)}: {reason(error)}") from error

    @property
    def hosts(self) -> tuple[str, ...]:
        """The URLs of all servers."""
        return self._target.hosts

    @property
    def _access(self) -> Access:
        return self._target.access

    @property
    def host(self) -> str:
        """The server that the next request goes to."""
        return self.hosts[self._current]

    @property
    def proxy(self) -> str:
        """The URL of the HTTP proxy of the last request, without a password; empty for none."""
        return self._access.proxy(self._last_host or self.host)

    def servers(self) -> frozenset[Backend]:
        """Return the addresses of all servers so far, or of the proxy on the way to them.

        Any thread; does not block, and resolves no name.
        """
        with self._lock:
            return frozenset(self._servers)

    def follow_files(self) -> None:
        """Read changed files of the credentials, and break all connections if they are valid.

        The next request of each thread then goes to the server that they name. Without this, a
        watch would stay at the previous server for minutes. Invalid files break no connection, and
        the next call reads them again: the error may be in a file that Access does not know yet.
        Any thread; does not block for long.
        """
        with self._reloading:
            if self._access.files != self._access.files_now():
                self._reload()
            # A request may have read them before.
            files = self._access.files
        if files != self._files:
            self._files = files
            self.interrupt()

    def interrupt(self) -> None:
        """Shut all connections down: requests in any thread raise UnreachableError."""
        with self._lock:
            sockets = list(self._sockets)
        # shutdown wakes up a thread that blocks in recv or poll on the socket; close does not.
        for sock in sockets:
            try:
                # Not SSLSocket.shutdown: it would remove the TLS state that a reader still uses.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                log.debug("a connection was closed before it could be shut down")

    def _request(self, request: _Request, timeout: float) -> BaseHTTPResponse:
        self._renew()
        hosts = self.hosts
        # After a 401 the credentials on disk may be newer. Only once: a second 401 is the result.
        response = self._send_to_any(request, timeout)
        if response.status == 401 and self._reload():
            response.close()
            response = self._send_to_any(request, timeout)
        if request.method == "GET" and self.hosts != hosts:
            # `follow_files` could not interrupt it: it was about to connect to the former server,
            # where a watch would stay for minutes.
            response.close()
            response = self._send_to_any(request, timeout)
        if 200 <= response.status < 300:
            return response
        try:
            raise status_error(request.method, request.target, response)
        finally:
            response.close()

    def _send_to_any(self, request: _Request, timeout: float) -> BaseHTTPResponse:
        hosts, access = self._target
        for attempt in range(1, len(hosts) + 1):
            # No lock: a race between threads costs one attempt at a server that has just failed.
            index = self._current
            host = hosts[index]
            try:
                response = self._send(access, host, request, timeout)
                if response.status >= 500:
                    self._move_on(index)
                return response
            except (HTTPError, OSError) as error:
                self._count(request.method, host, "<error>")
                self._move_on(index)
                safe = _REPEATABLE if request.method == "GET" else _NOT_SENT
                if attempt == len(hosts) or not isinstance(error, safe):
                    raise UnreachableError(f"{host}{self._via(host)}: {reason(error)}") from error
            except ValueError as error:
                # From http.client: a header or a path is invalid, and the text repeats it.
                self._count(request.method, host, "<error>")
                name = type(error).__name__
                raise UnreachableError(f"{host}: the request cannot be sent: {name}") from None
        raise AssertionError("there is at least one server")

    def _via(self, host: str) -> str:
        proxy = self._access.proxy(host)
        return f" by the proxy {proxy}" if proxy else ""

    def _move_on(self, index: int) -> None:
        """Send the next request to the server after this one."""
        if self._current == index:  # another thread may have moved on first
            self._current = (index + 1) % len(self.hosts)

    def _send(
        self, access: Access, host: str, request: _Request, timeout: float
    ) -> BaseHTTPResponse:
        method, target, body, accept, compressed = request
        self._last_host, url = host, host + target
        headers = {"Accept": accept, "User-Agent": "pyproxy"}
        # Not for a watch: a proxy on the way would hold events back to compress them together.
        if compressed:
            headers["Accept-Encoding"] = "gzip"
        if body is not None:
            headers["Content-Type"] = JSON_TYPE
        if authorization := access.authorization():
            headers["Authorization"] = authorization
        began = time.monotonic()
        response = access.pool(host).request(
            method,
            url,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=timeout),
            preload_content=False,
            # 0 would raise a MaxRetryError, not the error itself, which _NOT_SENT needs.
            retries=False,
            redirect=False,
        )
        # urllib3 has only the path here, and `read` needs the host.
        response.url = url
        self._count(method, url, str(response.status))
        self._compare_clocks(response.headers.get("Date", ""))
        if self._observer is not None:
            took = time.monotonic() - began
            self._observer.observe_request(method, urlsplit(url).netloc, took, len(body or b""))
        return response

    def _read(
        self, method: str, response: BaseHTTPResponse, limit: int, now: Callable[[], float]
    ) -> bytes:
        body = read_body(response, limit, now)
        if self._observer is not None:
            self._observer.observe_response(method, urlsplit(response.url or "").netloc, len(body))
        return body

    def _renew(self) -> None:
        # Client certificates are part of the TLS handshake, so new ones need a new pool.
        if self._access.is_outdated():
            with self._reloading:
                if self._access.is_outdated():  # another thread may have read them
                    self._reload()

    def _reload(self) -> bool:
        """Read the credentials again; return False if they cannot be read."""
        try:
            target = self._made_of(self._load())
        except UsageError as error:
            if str(error) != self._reload_error:
                log.warning("cannot reload the credentials, using the previous ones: %s", error)
            self._reload_error = str(error)
            return False
        self._reload_error = ""
        if target.hosts != self.hosts:
            log.info("the API server is %s now, as the kubeconfig says", target.hosts[0])
            self.moves += 1
        self._target = target
        return True

    def _made_of(self, access: Access) -> _Target:
        hosts = self._given or (access.host.rstrip("/"),)
        # urllib3 hides a request's socket until the head of the response has been read, but
        # `interrupt` must reach it before that too.
        head_timeout = HEAD_TIMEOUT if len(hosts) > 1 else math.inf
        classes = pool_classes(self._remember, head_timeout)
        for pool in access.pools:
            pool.pool_classes_by_scheme = classes
        return _Target(hosts, access)

    def _remember(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
            with suppress(OSError):  # the server may have closed the connection
                self._servers.add(peer(sock))

    def _compare_clocks(self, date: str) -> None:
        # Not parsedate_tz, because a date without a time zone is not of HTTP.
        with suppress(ValueError, TypeError, OverflowError):
            self.clock_offset = parsedate_to_datetime(date).timestamp() - time.time()

    def _count(self, method: str, url: str, code: str) -> None:
        if self._observer is not None:
            self._observer.count_request(method, urlsplit(url).netloc, code)
