"""Asking the agent on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO
from urllib.parse import urlencode

import msgspec

from pyproxy.errors import PyproxyError, UsageError
from pyproxy.inspect.endpoint import Endpoint, Q, R, Refusal, Stream

_TIMEOUT = 12.0
"""Seconds without a byte after which an agent is given up."""

_LINE = 1 << 16
"""Bytes beyond which a line of the head is none of HTTP's."""


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
    ) -> Iterator[BinaryIO]:
        """Give the body of the answer to read."""
        query = urlencode(msgspec.to_builtins(question))
        target = f"{path}?{query}" if query else path
        try:
            with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as answer:
                sock.settimeout(timeout)
                sock.connect(self._path)
                sock.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
                status = _status(answer)
                if status != b"200":
                    raise _refusal(self._path, answer.read())
                yield answer
        except PermissionError as error:
            raise UsageError(f"{self._path}: only root may ask: use sudo") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoAgentError(f"no agent listens on {self._path}") from error
        except TimeoutError as error:
            raise SilentAgentError(f"the agent on {self._path} is silent") from error
        except (OSError, EOFError) as error:
            raise AgentError(f"{self._path}: the agent broke off: {error}") from error
        except msgspec.ValidationError as error:
            raise AgentError(
                f"{self._path}: the agent is of another version, whose answers are not understood "
                f"here: {error}"
            ) from error
        except msgspec.DecodeError as error:
            raise AgentError(f"{self._path}: the agent broke off: {error}") from error


def _status(answer: BinaryIO) -> bytes:
    """Read the head of an answer, up to its body, for its status.

    An agent answers HTTP/1.0, where a body ends with the connection: what else the head says
    matters to nobody here. The library's client takes as long to load as the rest of a question.
    """
    line = answer.readline(_LINE)
    if not line:
        raise EOFError("it hung up")
    _, _, rest = line.partition(b" ")
    while answer.readline(_LINE).strip():
        pass
    return rest[:3]


def _refusal(path: str, body: bytes) -> PyproxyError:
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return AgentError(f"{path}: what listens there is no agent of ours")
    return UsageError(refusal.error) if refusal.usage else AgentError(refusal.error)
