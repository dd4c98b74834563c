"""The local socket: JSON over HTTP, for root on this machine and nobody else.

A thread for each client, a few at a time: whoever asks waits for a snapshot, and renders it beside
the agent's thread, which is held up by neither.
"""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.query import ErrorReply, Query, Stream
from pyproxy.inspect.snapshot import AgentView
from pyproxy.inspect.threads import BoundedThreads
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT = 10.0
_STOP_TIMEOUT = 1.0
_CREDENTIALS = struct.Struct("3i")

Endpoints = Mapping[str, Query[Any, Any] | Stream[Any, Any]]


class Server:
    """Answers on a Unix socket between `start` and `stop`.

    A socket that cannot be had is a warning: what the agent is for goes on without it.
    """

    def __init__(self, path: str, endpoints: Endpoints, witness: AgentView) -> None:
        self._path = path
        self._endpoints = endpoints
        self._witness = witness
        self._server: _Listener | None = None
        self._thread: Worker | None = None
        self._ending = False

    def start(self) -> None:
        """Listen and begin to answer; nowhere where the path is empty."""
        if not self._path:
            return
        try:
            _make_way(Path(self._path))
            self._server = _Listener(self._path, self._endpoints, self._witness)
        except OSError as error:
            log.warning(
                "cannot be asked on %s: %s; commands such as pyproxy status do without this agent",
                self._path,
                error.strerror or error,
            )
            return
        self._thread = Worker("inspect", self._run)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and take it off the file system."""
        if self._server is None or self._thread is None:
            return
        self._ending = True
        with suppress(OSError), socket.socket(socket.AF_UNIX) as last:
            last.connect(self._path)
        self._thread.end(_STOP_TIMEOUT)
        self._server.server_close()
        Path(self._path).unlink(missing_ok=True)

    def _run(self) -> None:
        # socketserver's own loop wakes up twice a second to see whether it is to end, and takes as
        # long for it. This one sleeps until somebody comes, be it only to end it.
        while self._server is not None and not self._ending:
            self._server.handle_request()


def _make_way(path: Path) -> None:
    """Remove a socket that nobody listens on any more. Raises OSError where somebody does."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise FileExistsError(0, "another agent listens there: give --inspect-socket")


class _Listener(BoundedThreads, socketserver.UnixStreamServer):
    request_queue_size = BoundedThreads.clients

    def __init__(self, path: str, endpoints: Endpoints, witness: AgentView) -> None:
        self.endpoints = endpoints
        self.witness = witness
        super().__init__(path, _Handler)

    def server_bind(self) -> None:
        super().server_bind()
        # Nobody can connect before listen, and so nobody got in with other rights.
        Path(str(self.server_address)).chmod(0o600)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Let root in, and who the agent runs as; root of another user namespace is somebody."""
        credentials = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(credentials)
        return uid in {0, os.geteuid()}


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    timeout = _REQUEST_TIMEOUT

    def do_GET(self) -> None:
        """Answer one question."""
        target = urlsplit(self.path)
        endpoint = self.server.endpoints.get(target.path)
        if endpoint is None:
            known = ", ".join(self.server.endpoints)
            self._refuse(HTTPStatus.NOT_FOUND, ErrorReply(f"{target.path} is none of {known}"))
            return
        try:
            given = dict(parse_qsl(target.query, strict_parsing=True)) if target.query else {}
            question = msgspec.convert(given, endpoint.question, strict=False)
            if isinstance(endpoint, Stream):
                self._stream(endpoint, question)
            else:
                body = msgspec.json.encode(endpoint.respond(self.server.witness, question))
                self._reply(HTTPStatus.OK, body)
        except (UsageError, ValueError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, ErrorReply(str(error), usage=True))
        except PyproxyError as error:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, ErrorReply(str(error)))
        except OSError:
            raise
        except Exception as error:
            log.exception("answering %s failed, which is a mistake in pyproxy", target.path)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, ErrorReply(f"{type(error).__name__}"))

    def _stream(self, endpoint: Stream[Any, Any], question: msgspec.Struct) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/jsonl")
        self.end_headers()
        for each in endpoint.respond(self.server.witness, question):
            self.wfile.write((b"" if each is None else msgspec.json.encode(each)) + b"\n")

    def _refuse(self, status: HTTPStatus, refusal: ErrorReply) -> None:
        self._reply(status, msgspec.json.encode(refusal))

    def _reply(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Leave the log to what matters."""
        log.debug(format, *args)

    def address_string(self) -> str:
        """A Unix socket's client has no address."""
        return "a local client"
