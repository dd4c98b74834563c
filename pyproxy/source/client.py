"""An HTTP client for the Kubernetes API that hands over bytes.

Configuration and authentication are the `kubernetes` package's: its Configuration, its token
hooks, its connection pool. Its API and model classes are left alone, for they decode with Python
what `wire` decodes with msgspec.

Several servers may be given; each request goes to the one that answered last, and on to the next
where no connection comes about. Nothing is retried here otherwise: pacing belongs to the caller.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol
from urllib.parse import urlencode, urlsplit

import msgspec
import urllib3
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection
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

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 4.0
"""Seconds for a connection to come about; two dead servers cost less than ten."""

ANSWER_TIMEOUT = 60.0
"""Seconds without a byte after which an answer is given up; the API server's own limit is 60."""

SOCKET_OPTIONS = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]
"""A peer that is gone without a word is noticed by the kernel within 30 seconds.

Keepalive probes speak for a connection that only receives, as a watch does; TCP_USER_TIMEOUT for
one with a request on its way, which keepalive does not cover. Neither notices a process that
hangs while its kernel goes on acknowledging: that is what read timeouts are for.
"""

HEAD_TIMEOUT = 8.0
"""Seconds until one of several servers must have begun to answer; a single one has longer.

A server that hangs while its kernel goes on accepting connections costs this much.
"""

_NOT_CONNECTED = (NewConnectionError, ConnectTimeoutError, SSLError, ProxyError)
_STATUS = msgspec.json.Decoder(wire.Status)


class UnreachableError(SourceError):
    """No answer came: no connection, or it broke, or it went silent."""


class RefusedError(SourceError):
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

    def request(self, method: str, host: str, code: str) -> None:
        """Count one request; `code` is HTTP's status, or "<error>" where none came."""
        ...

    def request_took(self, method: str, host: str, duration: float) -> None:
        """Note the seconds from a request to the head of its answer."""
        ...


class Client:
    """Requests to one of several equal API servers, from any thread.

    `load` reads the configuration, and is called again when a certificate or key that it names has
    changed on disk, and when the server says 401. A server that fails (5xx) is left for the next
    one, but what it was asked for is not asked again here. Raises UsageError from `load`.
    """

    def __init__(
        self,
        load: Callable[[], Configuration],
        hosts: tuple[str, ...] = (),
        observer: RequestObserver | None = None,
    ) -> None:
        self._load = load
        self._observer = observer
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        configuration = load()
        self.hosts = tuple(host.rstrip("/") for host in hosts or (configuration.host,))
        self._current = 0
        self._set(configuration)

    def get(
        self, path: str, query: Mapping[str, str], timeout: float = ANSWER_TIMEOUT
    ) -> BaseHTTPResponse:
        """Ask for something; the body of the answer is unread, and the caller closes it.

        `timeout` is the longest silence in seconds, while waiting for the answer and within it.
        Raises UnreachableError, RefusedError.
        """
        return self._request("GET", f"{path}?{urlencode(query)}" if query else path, None, timeout)

    def post(self, path: str, body: bytes, timeout: float = ANSWER_TIMEOUT) -> bytes:
        """Create something from JSON and return the answer's body.

        Raises UnreachableError, RefusedError.
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
        if self._files != _state_of_files(self._configuration):
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
        if authorization := self._authorization():
            headers["Authorization"] = authorization
        began = time.monotonic()
        response = self._pool.request(
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
            self._observer.request_took(method, urlsplit(url).netloc, took)
        return response

    def _authorization(self) -> str:
        """Give the credentials as a header's value, refreshed by the package's own hook."""
        try:
            settings = self._configuration.auth_settings()
        except (OSError, ValueError, ConfigException) as error:
            # A token file is being exchanged just now: what was read from it last may still do.
            log.warning("the token cannot be refreshed, the last one is used: %s", error)
            return str(self._configuration.api_key.get("BearerToken", ""))
        return str(settings.get("BearerToken", {}).get("value") or "")

    def _reload(self) -> bool:
        """Read the configuration again, as far as it can be read."""
        try:
            self._set(self._load())
        except UsageError as error:
            log.warning("the credentials cannot be read again, the last ones are used: %s", error)
            return False
        return True

    def _set(self, configuration: Configuration) -> None:
        configuration.socket_options = SOCKET_OPTIONS
        try:
            pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
        except (OSError, ValueError, TypeError, AttributeError, HTTPError) as error:
            # A kubeconfig's values reach this far as they stand there, whatever their type.
            raise UsageError(f"the API server's configuration is not usable: {error}") from error
        # urllib3 keeps the socket of a request to itself until the answer's head is read. A
        # source that is told to stop must get at it before that too.
        head_timeout = HEAD_TIMEOUT if len(self.hosts) > 1 else math.inf
        pool.pool_classes_by_scheme = pools(self._remember, head_timeout)
        self._files = _state_of_files(configuration)
        self._configuration = configuration
        self._pool = pool

    def _remember(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)

    def _count(self, method: str, url: str, code: str) -> None:
        if self._observer is not None:
            self._observer.request(method, urlsplit(url).netloc, code)


def _state_of_files(configuration: Configuration) -> tuple[tuple[int, ...], ...]:
    """Tell the files apart that a configuration names from what they were before or after."""
    state = []
    for path in (configuration.cert_file, configuration.key_file, configuration.ssl_ca_cert):
        try:
            found = os.stat(path) if path else None
        except OSError:  # it is being exchanged just now
            found = None
        state.append((found.st_ino, found.st_mtime_ns, found.st_size) if found else ())
    return tuple(state)


def _reason(error: Exception) -> str:
    """Say what went wrong without the connection object that urllib3 begins with."""
    text = str(error)
    return text.partition("): ")[2] or text


def _refusal(method: str, target: str, response: BaseHTTPResponse) -> RefusedError:
    """Say in one line what the server answered instead of what was asked for."""
    text = ""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, HTTPError, OSError):
        # What is no Status, as from a proxy on the way, has nothing to say but its number.
        text = " ".join((_STATUS.decode(response.read(65536)).message or "").split())
    retry_after = response.headers.get("Retry-After", "")
    return RefusedError(
        f"{method} {target.partition('?')[0]}: {response.status} {text or response.reason}",
        response.status,
        float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0,
    )
