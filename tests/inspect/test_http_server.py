"""The HTTP base of socket and page: error responses, and the limits on clients."""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus

import pytest

from pyproxy.errors import PyproxyError, SourceError, UsageError
from pyproxy.inspect.http_server import HEAD_SIZE, BoundedThreads, RequestHandler
from tests.waiting import PATIENCE, until

Action = Callable[[], None]


class Handler(RequestHandler):
    server: Server
    extra_headers = {"X-Extra": "yes"}  # noqa: RUF012

    def get(self, path: str, query: str) -> None:
        self.server.action()
        self.respond(HTTPStatus.OK, f"{path}?{query}".encode(), "text/plain")

    def fail(self, status: HTTPStatus, message: str) -> None:
        self.respond(status, message.encode(), "text/plain")


class Server(BoundedThreads, socketserver.TCPServer):
    clients = 2

    def __init__(self, action: Action) -> None:
        self.action = action
        super().__init__(("127.0.0.1", 0), Handler)


@contextmanager
def serving(action: Action) -> Iterator[int]:
    with Server(action) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int) -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("GET", "/path?a=b")
        response = connection.getresponse()
        body = response.read().decode()
        if "too many clients" not in body:
            assert response.headers["X-Extra"] == "yes"
        if response.status == 503:
            assert response.headers["Retry-After"] == "1"
        return response.status, body


def raising(error: Exception) -> Action:
    def action() -> None:
        raise error

    return action


def test_a_request_is_dispatched_with_path_and_query() -> None:
    with serving(lambda: None) as port:
        assert get(port) == (200, "/path?a=b")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("wrong name"), 400, "wrong name"),
        (ValueError("wrong value"), 400, "wrong value"),
        (SourceError("no API server"), 503, "no API server"),
        (PyproxyError("busy"), 503, "busy"),
        (
            OSError(errno.EMFILE, "Too many open files"),
            503,
            "the agent cannot respond: [Errno 24] Too many open files",
        ),
        (KeyError("x"), 500, "internal error (KeyError): see the agent's log"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_is_a_response_with_its_status(
    error: Exception, status: int, message: str
) -> None:
    with serving(raising(error)) as port:
        assert get(port) == (status, message)


def test_clients_above_the_limit_are_refused_and_a_finished_one_makes_room() -> None:
    entered, release = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        entered.release()
        release.wait()

    with serving(wait) as port:
        busy = [threading.Thread(target=get, args=(port,)) for _ in range(2)]
        for thread in busy:
            thread.start()
        for _ in busy:
            assert entered.acquire(timeout=60)
        assert get(port) == (503, "too many clients are connected: try again\n")
        release.set()
        for thread in busy:
            thread.join()

        until(lambda: get(port)[0] == 200, "a place is free again")


def test_an_idle_client_makes_room_for_a_new_one() -> None:
    with serving(lambda: None) as port:
        idle = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(5)]
        assert get(port) == (200, "/path?a=b")
        for each in idle:
            each.close()


def test_a_request_without_an_end_is_closed_by_its_size() -> None:
    with serving(lambda: None) as port, socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET /path?a=b HTTP/1.0\r\n" + b"X-Header: " + b"x" * HEAD_SIZE)
        response = b""
        # The rest is not read, so the server's kernel may reset the connection.
        with contextlib.suppress(ConnectionResetError):
            while received := client.recv(4096):
                response += received
    assert b"/path" in response or not response
