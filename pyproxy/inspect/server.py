"""The agent's Unix socket: JSON over HTTP, for root on this node."""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from pyproxy.inspect.http_server import BoundedThreads, RequestHandler
from pyproxy.inspect.listing import encoded
from pyproxy.inspect.queries import QUERIES, ErrorReply, Stream
from pyproxy.inspect.retried_listening import listen_later
from pyproxy.inspect.snapshot import AgentView
from pyproxy.inspect.turn_taking import TurnTaking
from pyproxy.inspect.turns import Turn, Turns
from pyproxy.workers import Worker

log = logging.getLogger(__name__)

_STOP_TIMEOUT = 1.0
_STREAM_PAUSE = 0.05
_CREDENTIALS = struct.Struct("3i")
"""struct ucred of SO_PEERCRED: pid, uid, gid."""


class InspectServer:
    """Serves queries on a Unix socket between `start` and `stop`.

    Each client has a thread of its own, so that rendering a result does not delay the agent's
    thread, and computes in `turns` with all other askers. A socket that cannot be bound is a
    warning: the agent proxies without it, and tries again every second.
    """

    def __init__(self, path: str, agent: AgentView, turns: Turns) -> None:
        self._path = path
        self._agent = agent
        self._turns = turns
        self._server: _Listener | None = None
        self._thread: Worker | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Listen and serve; does nothing if the path is empty."""
        if not self._path:
            return
        try:
            self._listen()
        except OSError as error:
            log.warning(
                "cannot listen on %s: %s; retrying every second, and pyproxy status and other "
                "commands cannot query this agent meanwhile",
                self._path,
                error.strerror or error,
            )
        self._thread = Worker("inspect", self._run)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and remove its file; returns within about a second."""
        if self._thread is None:
            return
        self._stopping.set()
        if self._server is not None:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as last:
                # With a full queue the thread is awake, and a connect would block.
                last.setblocking(False)
                last.connect(self._path)
        self._thread.end(_STOP_TIMEOUT)
        if self._server is not None:
            # Before the close, after which another agent may bind the path.
            Path(self._path).unlink(missing_ok=True)
            self._server.server_close()

    def _listen(self) -> None:
        _remove_stale_socket(Path(self._path))
        self._server = _Listener(self._path, self._agent, self._turns)

    def _run(self) -> None:
        if self._server is None and not listen_later(self._listen, self._path, self._stopping):
            return
        # serve_forever of socketserver polls twice a second. This loop sleeps until a client
        # connects; `stop` connects to wake it up.
        while self._server is not None and not self._stopping.is_set():
            self._server.handle_request()


def _remove_stale_socket(path: Path) -> None:
    """Remove a socket on which no process listens. Raises FileExistsError if one does."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # The queue of a stopped process may be full, and connect would wait for it.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        # The file of a Unix socket outlives its process; without a listener connect fails.
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise FileExistsError(0, "another agent listens there: set --inspect-socket")


class _Listener(BoundedThreads, socketserver.UnixStreamServer):
    request_queue_size = 128

    def __init__(self, path: str, agent: AgentView, turns: Turns) -> None:
        self.agent = agent
        self.turns = turns
        super().__init__(path, _Handler)

    def server_bind(self) -> None:
        # bind(2) gives the file the mode of the socket. A chmod of the path would follow a symbolic
        # link that another program has put there meanwhile.
        os.fchmod(self.socket.fileno(), 0o600)
        super().server_bind()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Accept only root and the agent's own user.

        The kernel maps root of another user namespace to the overflow uid, which is not accepted.
        """
        # The kernel recorded these at connect, so a client cannot claim another uid.
        credentials = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(credentials)
        return uid in {0, os.geteuid()}


class _Handler(RequestHandler):
    server: _Listener

    def get(self, path: str, query: str) -> None:
        """Run one query."""
        known = QUERIES.get(path)
        if known is None:
            self.fail(HTTPStatus.NOT_FOUND, f"{path}: no such query: use {', '.join(QUERIES)}")
            return
        given = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        arguments = msgspec.convert(given, known.arguments, strict=False)
        turn = self.server.turns.turn("")
        if isinstance(known, Stream):
            self._stream(known, arguments, turn)
            return

        def body() -> Iterator[bytes]:
            yield from encoded(known.handler(TurnTaking(self.server.agent, turn), arguments))

        self.stream(body(), "application/json", turn)

    def _stream(self, known: Stream[Any, Any], arguments: Any, turn: Turn) -> None:
        self.server.connections.streams(self.connection)
        self.send_head(HTTPStatus.OK, "application/jsonl")
        for results in known.handler(self.server.agent, arguments):
            with turn:
                lines = b"".join(msgspec.json.encode(each) + b"\n" for each in results)
            self.wfile.write(lines or b"\n")
            # Changes come in bursts: one wake-up for several of them costs others less.
            if results:
                time.sleep(_STREAM_PAUSE)

    def fail(self, status: HTTPStatus, message: str) -> None:
        """Send an ErrorReply."""
        reply = ErrorReply(message, usage=status is self.usage_status)
        self.respond(status, msgspec.json.encode(reply), "application/json")
