"""urllib3's connections, with what this client adds: their sockets are told, their heads timed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


def pools(report: Callable[[socket.socket], None], head_timeout: float) -> dict[str, Any]:
    """Make urllib3's connection pools report each socket as soon as it is connected.

    They wait `head_timeout` seconds at most for the head of an answer, however long silence may
    last within its body.
    """

    class PlainConnection(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            if self.sock is not None:
                report(self.sock)

        def getresponse(self) -> HTTPResponse:  # type: ignore[override]
            with _impatient(self, head_timeout):
                return super().getresponse()

    class TLSConnection(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            if self.sock is not None:
                report(self.sock)

        def getresponse(self) -> HTTPResponse:  # type: ignore[override]
            with _impatient(self, head_timeout):
                return super().getresponse()

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class TLSPool(HTTPSConnectionPool):
        ConnectionCls = TLSConnection

    return {"http": PlainPool, "https": TLSPool}


@contextmanager
def _impatient(connection: HTTPConnection, head_timeout: float) -> Iterator[None]:
    """Inside it, silence on a connection may last `head_timeout` seconds at most."""
    # urllib3 has set this to the time that silence may last, and hands it to the socket.
    patience, sock = connection.timeout, connection.sock
    if not isinstance(patience, int | float) or patience <= head_timeout:
        yield
        return
    connection.timeout = head_timeout
    yield
    connection.timeout = patience
    with suppress(OSError):  # an answer that is complete may have closed it
        sock.settimeout(patience)
