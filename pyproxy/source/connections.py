"""Connections to an API server that report their sockets, and the address at their other end."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec
from urllib3 import (
    BaseHTTPResponse,
    HTTPConnectionPool,
    HTTPResponse,
    HTTPSConnectionPool,
    PoolManager,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from pyproxy.model.address import Address, Backend, Port, backend, is_mapped, parse_address


def peer(sock: socket.socket) -> Backend:
    """Return the address at the other end of a connection. Raises OSError."""
    text, port = sock.getpeername()[:2]
    address = parse_address(text.partition("%")[0])
    # A dual-stack socket has the IPv4 server's address as an IPv4-mapped one.
    return backend(Address(address[12:]) if is_mapped(address) else address, Port(port))


class Connection(msgspec.Struct, frozen=True):
    """A connection that no pool knows; `netloc` and `path` are parts of the server's URL.

    `authorization` is the value of the header, empty for none.
    """

    socket: socket.socket
    netloc: str
    path: str
    authorization: str


def connect(pools: PoolManager, url: str, authorization: str, timeout: float) -> Connection:
    """Open a connection with the TLS settings and the proxy of a pool's requests.

    Blocks, `timeout` seconds at most for each step. Raises HTTPError, OSError.
    """
    pool, parts = pools.connection_from_url(url), urlsplit(url)
    if pool.proxy is not None and parts.scheme != "https":
        raise HTTPError("an HTTP proxy can connect to a server with https only")
    # urllib3 has no public way to take a connection out of a pool.
    made: Any = pool._new_conn()
    made.timeout = timeout
    if pool.proxy is None:
        made.connect()
    else:
        pool._prepare_proxy(made)
    return Connection(made.sock, parts.netloc, parts.path.rstrip("/"), authorization)


def pool_classes(report: Callable[[socket.socket], None], head_timeout: float) -> dict[str, Any]:
    """Return pool classes for urllib3 that report each socket as soon as it is connected.

    They wait `head_timeout` seconds at most for the head of a response, whatever the read timeout
    of its body.
    """

    # Subclasses, because urllib3 has no hook for a connection that is made. HTTPSConnection is a
    # subclass of HTTPConnection, so its `connect` is the next one after this one.
    class Reporting(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            if self.sock is not None:
                report(self.sock)

        def getresponse(self) -> HTTPResponse:  # type: ignore[override]
            with _read_timeout(self, head_timeout):
                return super().getresponse()

    class ReportingTLS(Reporting, HTTPSConnection):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Reporting

    class TLSPool(HTTPSConnectionPool):
        ConnectionCls = ReportingTLS

    return {"http": PlainPool, "https": TLSPool}


def set_read_timeout(response: BaseHTTPResponse, seconds: float) -> None:
    """Change the longest silence within a response; without effect if it ends the connection."""
    sock = getattr(response.connection, "sock", None)
    if sock is not None:
        sock.settimeout(seconds)


@contextmanager
def _read_timeout(connection: HTTPConnection, seconds: float) -> Iterator[None]:
    """Shorten the read timeout of a connection to `seconds` inside the context."""
    # urllib3 has stored the read timeout here and passes it to the socket in getresponse.
    timeout, sock = connection.timeout, connection.sock
    if not isinstance(timeout, int | float) or timeout <= seconds:
        yield
        return
    # No `finally`: after an error urllib3 closes the connection.
    connection.timeout = seconds
    yield
    connection.timeout = timeout
    with suppress(OSError):  # a complete response may have closed the socket
        sock.settimeout(timeout)
