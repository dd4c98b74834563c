"""The client's errors: other processes on the socket, broken responses, no response."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.client import AgentError, AgentTimeoutError, Client, NoAgentError
from pyproxy.inspect.queries import NoArgs, Query, Stream

HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"


class Weather(msgspec.Struct, frozen=True):
    degrees: int


class WeatherArgs(msgspec.Struct, frozen=True):
    day: str


WEATHER = Query("/weather", WeatherArgs, Weather, lambda *_: Weather(0))
FORECAST = Stream("/forecast", NoArgs, Weather, lambda *_: iter(()))


@contextmanager
def server_that_sends(path: Path, response: bytes) -> Iterator[list[bytes]]:
    """Accept one connection, send a response, close it; the list then has the request."""
    requests: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as client:
                requests.append(client.recv(1 << 16))
                client.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        yield requests
        thread.join()


def test_arguments_are_a_query_string_and_the_result_is_the_body(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with server_that_sends(path, HEAD + b'{"degrees":21}') as requests:
        result = Client(str(path)).query(WEATHER, WeatherArgs("today & tomorrow"))
    assert result == Weather(21)
    assert requests[0].startswith(b"GET /weather?day=today+%26+tomorrow HTTP/1.")


def test_a_stream_yields_lines_until_the_connection_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with server_that_sends(path, HEAD + b'{"degrees":21}\n\n{"degrees":22}\n'):
        results = list(Client(str(path)).stream(FORECAST, NoArgs()))
    assert results == [Weather(21), Weather(22)]


@pytest.mark.parametrize(
    ("response", "kind", "message"),
    [
        (b"", AgentError, "the agent closed the connection: Remote end closed"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", AgentError, "listens there is not a pyproxy agent"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n<p>", AgentError, "there is not a pyproxy agent"),
        (b"HTTP/1.0 503 x\r\n\r\n" + b'{"error":"busy"}', AgentError, "^busy$"),
        (b"HTTP/1.0 400 x\r\n\r\n" + b'{"error":"no","usage":true}', UsageError, "^no$"),
        (HEAD + b'{"degr', AgentError, "the response is incomplete"),
        (HEAD, AgentError, "the response is incomplete"),
        (HEAD + b'{"celsius":21}', AgentError, "the agent has another version"),
    ],
)
def test_a_broken_response_is_an_error_that_names_the_cause(
    response: bytes, kind: type[PyproxyError], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with server_that_sends(path, response), pytest.raises(kind, match=message):
        Client(str(path)).query(WEATHER, WeatherArgs("today"))


def test_an_agent_that_does_not_respond_is_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyproxy.inspect.client._TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with pytest.raises(AgentTimeoutError, match="did not respond"):
            Client(str(tmp_path / "socket")).query(WEATHER, WeatherArgs("today"))


def test_a_socket_that_does_not_exist_means_no_agent(tmp_path: Path) -> None:
    with pytest.raises(NoAgentError, match="no agent listens on"):
        Client(str(tmp_path / "none")).query(WEATHER, WeatherArgs("today"))
