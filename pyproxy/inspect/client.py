"""A client for the socket of the agent on this node."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from urllib.parse import urlencode

import msgspec

from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.queries import A, ErrorReply, Query, R, Stream

_TIMEOUT = 12.0
"""Seconds without a byte; the agent itself fails a query after 10 s."""


_RETRY_SECONDS = 0.05


class NoAgentError(PyproxyError):
    """No process listens on the socket."""


class AgentError(PyproxyError):
    """The agent reported an error, or its response cannot be read."""


class AgentTimeoutError(AgentError):
    """The agent did not respond in time: it is stopped or stuck."""


class Client:
    """Sends queries to the agent that listens on a Unix socket, one connection each.

    Every method raises NoAgentError, AgentError, and UsageError if the arguments are wrong or
    the caller has no permission.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def query(self, query: Query[A, R], arguments: A) -> R:
        """Send a query and return its result; blocks for 12 s at most without a byte."""
        with self._response(query.path, arguments, _TIMEOUT) as body:
            return msgspec.json.decode(body.read(), type=query.result)

    def stream(self, stream: Stream[A, R], arguments: A) -> Iterator[R]:
        """Yield each result as it arrives, until the agent closes the connection."""
        decoder = msgspec.json.Decoder(stream.result)
        with self._response(stream.path, arguments, None) as body:
            while line := body.readline():
                if line.strip():
                    yield decoder.decode(line)

    @contextmanager
    def _response(
        self, path: str, arguments: msgspec.Struct, timeout: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; the response's body is still to be read. Translates all errors."""
        query = urlencode(msgspec.to_builtins(arguments))
        try:
            with closing(_UnixConnection(self._path, timeout)) as connection:
                connection.request("GET", f"{path}?{query}" if query else path)
                response = connection.getresponse()
                if response.status != HTTPStatus.OK:
                    raise _error_of(self._path, response.read())
                # The caller's errors of reading and decoding are raised here, so they are
                # translated too.
                yield response
        # Subclasses first: those of OSError, then IncompleteRead before HTTPException, and
        # ValidationError before DecodeError.
        except PermissionError as error:
            raise UsageError(f"{self._path}: permission denied: run as root") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoAgentError(f"no agent listens on {self._path}") from error
        except TimeoutError as error:
            raise AgentTimeoutError(f"the agent on {self._path} did not respond") from error
        except (OSError, http.client.IncompleteRead) as error:
            raise AgentError(f"{self._path}: the agent closed the connection: {error}") from error
        except http.client.HTTPException as error:
            raise _not_an_agent(self._path) from error
        except msgspec.ValidationError as error:
            raise AgentError(
                f"{self._path}: the agent has another version, and its response cannot be read: "
                f"{error}"
            ) from error
        except msgspec.DecodeError as error:
            raise AgentError(f"{self._path}: the response is incomplete: {error}") from error


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; `timeout` is in seconds, None for none."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._socket_timeout = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._socket_timeout)
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                self.sock.connect(self._path)
            # EAGAIN: more clients wait than the listener's backlog holds. The kernel does not wait
            # on a socket with a timeout.
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError from error
                time.sleep(_RETRY_SECONDS)
            else:
                return


def _error_of(path: str, body: bytes) -> PyproxyError:
    try:
        reply = msgspec.json.decode(body, type=ErrorReply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _not_an_agent(path)
    return UsageError(reply.error) if reply.usage else AgentError(reply.error)


def _not_an_agent(path: str) -> AgentError:
    return AgentError(f"{path}: the process that listens there is not a pyproxy agent")
