"""What a question comes to when whoever listens on the socket is no agent, or not well."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.client import AgentError, Client, SilentAgentError
from pyproxy.inspect.query import Nothing, Query, Stream

HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"


class Weather(msgspec.Struct, frozen=True):
    degrees: int


class When(msgspec.Struct, frozen=True):
    day: str


WEATHER = Query("/weather", When, Weather, lambda *_: Weather(0))
FORECAST = Stream("/forecast", Nothing, Weather, lambda *_: iter(()))


@contextmanager
def saying(path: Path, routing: bytes) -> Iterator[list[bytes]]:
    """Listen for one question, say this, and hang up; the question is in the list then."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as client:
                heard.append(client.recv(1 << 16))
                client.sendall(routing)

        thread = threading.Thread(target=serve)
        thread.start()
        yield heard
        thread.join()


def test_a_question_is_a_request_and_the_answer_its_body(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with saying(path, HEAD + b'{"degrees":21}') as heard:
        assert Client(str(path)).ask(WEATHER, When("today & tomorrow")) == Weather(21)
    assert heard[0].startswith(b"GET /weather?day=today+%26+tomorrow HTTP/1.")


def test_a_stream_ends_with_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with saying(path, HEAD + b'{"degrees":21}\n\n{"degrees":22}\n'):
        assert list(Client(str(path)).follow(FORECAST, Nothing())) == [Weather(21), Weather(22)]


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (b"", AgentError, "the agent broke off: Remote end closed"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", AgentError, "what listens there is no agent of ours"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n<p>", AgentError, "what listens there is no agent of"),
        (b"HTTP/1.0 503 x\r\n\r\n" + b'{"error":"busy"}', AgentError, "^busy$"),
        (b"HTTP/1.0 400 x\r\n\r\n" + b'{"error":"no","usage":true}', UsageError, "^no$"),
        (HEAD + b'{"degr', AgentError, "the agent broke off"),
        (HEAD, AgentError, "the agent broke off"),
        (HEAD + b'{"celsius":21}', AgentError, "is of another version"),
    ],
)
def test_what_goes_wrong_is_said(
    routing: bytes, kind: type[PyproxyError], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with saying(path, routing), pytest.raises(kind, match=says):
        Client(str(path)).ask(WEATHER, When("today"))


def test_an_agent_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyproxy.inspect.client._TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with pytest.raises(SilentAgentError, match="is silent"):
            Client(str(tmp_path / "socket")).ask(WEATHER, When("today"))
