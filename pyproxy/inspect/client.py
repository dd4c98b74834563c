"""Asking the agent on this machine."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from urllib.parse import urlencode

import msgspec

from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.query import ErrorReply, Q, Query, R, Stream

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

    def ask(self, endpoint: Query[Q, R], question: Q) -> R:
        """Ask and wait for the answer."""
        with self._asked(endpoint.path, question, _TIMEOUT) as body:
            return msgspec.json.decode(body.read(), type=endpoint.reply)

    def follow(self, stream: Stream[Q, R], question: Q) -> Iterator[R]:
        """Give each answer as it comes; ends when the agent does."""
        decoder = msgspec.json.Decoder(stream.reply)
        with self._asked(stream.path, question, None) as body:
            while line := body.readline():
                if line.strip():
                    yield decoder.decode(line)

    @contextmanager
    def _asked(
        self, path: str, question: msgspec.Struct, timeout: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        """Give the answer, with its body to read."""
        query = urlencode(msgspec.to_builtins(question))
        try:
            with closing(_UnixConnection(self._path, timeout)) as connection:
                connection.request("GET", f"{path}?{query}" if query else path)
                response = connection.getresponse()
                if response.status != HTTPStatus.OK:
                    raise _refusal(self._path, response.read())
                yield response
        except PermissionError as error:
            raise UsageError(f"{self._path}: only root may ask: use sudo") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoAgentError(f"no agent listens on {self._path}") from error
        except TimeoutError as error:
            raise SilentAgentError(f"the agent on {self._path} is silent") from error
        except (OSError, http.client.IncompleteRead) as error:
            raise AgentError(f"{self._path}: the agent broke off: {error}") from error
        except http.client.HTTPException as error:
            raise _stranger(self._path) from error
        except msgspec.ValidationError as error:
            raise AgentError(
                f"{self._path}: the agent is of another version, whose answers are not understood "
                f"here: {error}"
            ) from error
        except msgspec.DecodeError as error:
            raise AgentError(f"{self._path}: the agent broke off: {error}") from error


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket of the file system; `timeout` is in seconds, None waits for ever."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._patience = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._patience)
        self.sock.connect(self._path)


def _refusal(path: str, body: bytes) -> PyproxyError:
    try:
        refusal = msgspec.json.decode(body, type=ErrorReply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _stranger(path)
    return UsageError(refusal.error) if refusal.usage else AgentError(refusal.error)


def _stranger(path: str) -> AgentError:
    return AgentError(f"{path}: what listens there is no agent of ours")
