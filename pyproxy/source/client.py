"""An HTTP client for the Kubernetes API that hands over bytes.

Who we are to a server, and the connections to it, are `access`'s.

Several servers may be given; each request goes to the one that answered last, and on to the next
where no connection comes about. Nothing is retried here otherwise: pacing belongs to the caller.
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
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlencode, urlsplit

import msgspec
import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProxyError,
    SSLError,
)

from pyproxy.errors import SourceError, UsageError
from pyproxy.source import wire
from pyproxy.source.connections import pools

if TYPE_CHECKING:
    from pyproxy.source.access import Access

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 4.0
"""Seconds for a connection to come about; two dead servers cost less than ten."""

ANSWER_TIMEOUT = 60.0
"""Seconds without a byte after which an answer is given up; the API server's own limit is 60."""

HEAD_TIMEOUT = 8.0
"""Seconds until one of several servers must have begun to answer; a single one has longer.

A server that hangs while its kernel goes on accepting connections costs this much.
"""

_NOT_CONNECTED = (NewConnectionError, ConnectTimeoutError, SSLError, ProxyError)
_STATUS = msgspec.json.Decoder(wire.Status)


class UnreachableError(SourceError):
    """No answer came: no connection, or it broke, or it went silent."""


class ApiStatusError(SourceError):
    """The server answered, and not with what was asked for.

    `status` is HTTP's, `retry_after` the seconds that the server asks to wait, 0 where it does
    not.
    """

    def __init__(self, message: str, status: int, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class RequestObserver(Protocol):
    """What wants to know of each request: metrics."""

    def count_request(self, method: str, host: str, code: str) -> None:
        """Count one request; `code` is HTTP's status, or "<error>" where none came."""
        ...

    def observe_request(self, method: str, host: str, duration: float) -> None:
        """Note the seconds from a request to the head of its answer."""
        ...


class Client:
    """Requests to one of several equal API servers, from any thread.

    `load` reads who we are to it, and is called again when a certificate or key that it names has
    changed on disk, and when the server says 401. A server that fails (5xx) is left for the next
    one, but what it was asked for is not asked again here. Raises UsageError from `load`.
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
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        access = load()
        self.hosts = tuple(host.rstrip("/") for host in hosts or (access.host,))
        self._current = 0
        self._set(access)

    def get(
        self, path: str, query: Mapping[str, str], timeout: float = ANSWER_TIMEOUT
    ) -> BaseHTTPResponse:
        """Ask for something; the body of the answer is unread, and the caller closes it.

        `timeout` is the longest silence in seconds, while waiting for the answer and within it.
        Raises UnreachableError, ApiStatusError.
        """
        return self._request("GET", f"{path}?{urlencode(query)}" if query else path, None, timeout)

    def post(self, path: str, body: bytes, timeout: float = ANSWER_TIMEOUT) -> bytes:
        """Create something from JSON and return the answer's body.

        Raises UnreachableError, ApiStatusError.
        """
        response = self._request("POST", path, body, timeout)
        try:
            return response.read()
        except (HTTPError, OSError) as error:
            raise UnreachableError(f"{self.host}: {_reason(error)}") from error
        finally:
            response.close()

    @property
    def host(self) -> str:
        """The server that requests go to now."""
        return self.hosts[self._current]

    def interrupt(self) -> None:
        """End all that waits for a server, in whichever thread, with UnreachableError."""
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            try:
                # Not SSLSocket's own shutdown, which takes the TLS state away from under a reader.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                log.debug("a connection had ended before it could be shut down")

    def _request(
        self, method: str, target: str, body: bytes | None, timeout: float
    ) -> BaseHTTPResponse:
        if self._access.is_outdated():
            self._reload()
        response = self._send_to_any(method, target, body, timeout)
        if response.status == 401 and self._reload():
            response.close()
            response = self._send_to_any(method, target, body, timeout)
        if 200 <= response.status < 300:
            return response
        try:
            raise _refusal(method, target, response)
        finally:
            response.close()

    def _send_to_any(
        self, method: str, target: str, body: bytes | None, timeout: float
    ) -> BaseHTTPResponse:
        for attempt in range(1, len(self.hosts) + 1):
            host, index = self.host, self._current
            try:
                response = self._send(method, host + target, body, timeout)
                if response.status >= 500:
                    self._move_on(index)
                return response
            except (HTTPError, OSError) as error:
                self._count(method, host, "<error>")
                self._move_on(index)
                if attempt == len(self.hosts) or not isinstance(error, _NOT_CONNECTED):
                    raise UnreachableError(f"{host}: {_reason(error)}") from error
        raise AssertionError("there is always one server at least")

    def _move_on(self, index: int) -> None:
        """Have the next request go to the server after this one."""
        if self._current == index:  # another thread may have moved on already
            self._current = (index + 1) % len(self.hosts)

    def _send(self, method: str, url: str, body: bytes | None, timeout: float) -> BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "pyproxy"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if authorization := self._access.authorization():
            headers["Authorization"] = authorization
        began = time.monotonic()
        response = self._access.pool.request(
            method,
            url,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=timeout),
            preload_content=False,
            retries=False,
            redirect=False,
        )
        self._count(method, url, str(response.status))
        if self._observer is not None:
            took = time.monotonic() - began
            self._observer.observe_request(method, urlsplit(url).netloc, took)
        return response

    def _reload(self) -> bool:
        """Read the configuration again, as far as it can be read."""
        try:
            self._set(self._load())
        except UsageError as error:
            log.warning("the credentials cannot be read again, the last ones are used: %s", error)
            return False
        return True

    def _set(self, access: Access) -> None:
        # urllib3 keeps the socket of a request to itself until the answer's head is read. A
        # source that is told to stop must get at it before that too.
        head_timeout = HEAD_TIMEOUT if len(self.hosts) > 1 else math.inf
        access.pool.pool_classes_by_scheme = pools(self._remember, head_timeout)
        self._access = access

    def _remember(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)

    def _count(self, method: str, url: str, code: str) -> None:
        if self._observer is not None:
            self._observer.count_request(method, urlsplit(url).netloc, code)


def _reason(error: Exception) -> str:
    """Say what went wrong without the connection object that urllib3 begins with."""
    text = str(error)
    return text.partition("): ")[2] or text


def _refusal(method: str, target: str, response: BaseHTTPResponse) -> ApiStatusError:
    """Say in one line what the server answered instead of what was asked for."""
    text = ""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, HTTPError, OSError):
        # What is no Status, as from a proxy on the way, has nothing to say but its number.
        text = " ".join((_STATUS.decode(response.read(65536)).message or "").split())
    retry_after = response.headers.get("Retry-After", "")
    return ApiStatusError(
        f"{method} {target.partition('?')[0]}: {response.status} {text or response.reason}",
        response.status,
        float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0,
    )
