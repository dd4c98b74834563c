"""The HTTP base of socket and page: error responses, and the limit on clients."""

from __future__ import annotations

import http.client
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus

import pytest

from pyproxy.errors import PyproxyError, SourceError, UsageError
from pyproxy.inspect.http_server import BoundedThreads, RequestHandler
from tests.waiting import until

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
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/path?a=b")
        response = connection.getresponse()
        assert response.headers["X-Extra"] == "yes"
        return response.status, response.read().decode()


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
        (KeyError("x"), 500, "internal error (KeyError): see the agent's log"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_is_a_response_with_its_status(
    error: Exception, status: int, message: str
) -> None:
    with serving(raising(error)) as port:
        assert get(port) == (status, message)


def test_clients_above_the_limit_are_disconnected_and_a_finished_one_makes_room() -> None:
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
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            get(port)
        release.set()
        for thread in busy:
            thread.join()

        def served() -> bool:
            try:
                return get(port)[0] == 200
            except (http.client.RemoteDisconnected, ConnectionResetError):
                return False

        until(served, "a slot is free again")
