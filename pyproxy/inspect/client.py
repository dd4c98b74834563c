"""Asking the agent on this machine."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlencode

import msgspec

from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.endpoint import Endpoint, Q, R, Refusal, Stream

_TIMEOUT = 12.0
"""Seconds without a byte after which an agent is given up."""


class NoAgentError(PyproxyError):
    """Nobody listens on the socket."""


class AgentError(PyproxyError):
    """The agent could not answer."""


class SilentAgentError(AgentError):
    """The agent does not answer in time: it is stopped, or stuck."""


class Client:
    """Questions to the agent behind a socket, each on a connection of its own.

    Every method raises NoAgentError, AgentError, and UsageError where the question was wrong or may
    not be asked.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def ask(self, endpoint: Endpoint[Q, R], question: Q) -> R:
        """Ask and wait for the answer."""
        try:
            body = self._get(endpoint.path, question).read()
        except (OSError, http.client.HTTPException) as error:
            raise AgentError(f"{self._path}: the agent broke off: {error}") from error
        return msgspec.json.decode(body, type=endpoint.reply)

    def follow(self, stream: Stream[Q, R], question: Q) -> Iterator[R]:
        """Give each answer as it comes; ends when the agent does."""
        response = self._get(stream.path, question, timeout=None)
        decoder = msgspec.json.Decoder(stream.reply)
        while line := response.readline():
            if line.strip():
                yield decoder.decode(line)

    def _get(
        self, path: str, question: msgspec.Struct, timeout: float | None = _TIMEOUT
    ) -> http.client.HTTPResponse:
        query = urlencode(msgspec.to_builtins(question))
        connection = _UnixConnection(self._path, timeout)
        try:
            connection.request("GET", f"{path}?{query}" if query else path)
            response = connection.getresponse()
        except PermissionError as error:
            raise UsageError(f"{self._path}: only root may ask: use sudo") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoAgentError(f"no agent listens on {self._path}") from error
        except TimeoutError as error:
            raise SilentAgentError(f"the agent on {self._path} is silent") from error
        except (OSError, http.client.HTTPException) as error:
            raise AgentError(f"{self._path}: the agent broke off: {error}") from error
        if response.status != HTTPStatus.OK:
            raise _refusal(self._path, response.read())
        return response


def _refusal(path: str, body: bytes) -> PyproxyError:
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return AgentError(f"{path}: what listens there is no agent of ours")
    return UsageError(refusal.error) if refusal.usage else AgentError(refusal.error)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket in the place of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
