"""Run a command in a container of a pod, as `kubectl exec` does: pods/exec over WebSocket.

The first byte of each message is its channel, in the subprotocols v5.channel.k8s.io (Kubernetes
1.30) and v4.channel.k8s.io. The end of the command is a Status on the error channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

import msgspec

from pyproxy.errors import SourceError, one_line
from pyproxy.source import wire
from pyproxy.source.client import CONNECT_TIMEOUT, ApiStatusError, Client, UnreachableError
from pyproxy.source.websocket import Deadline, HandshakeError, Upgrade, WebSocket

STDOUT, STDERR = 1, 2
_STDIN, _ERROR = 0, 3
_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_LARGEST_STATUS = 64 << 10
_LONGEST_TEXT = 300


class Container(msgspec.Struct, frozen=True):
    """A container of a pod."""

    namespace: str
    pod: str
    name: str


class _Cause(msgspec.Struct, frozen=True):
    reason: str | None = None
    message: str | None = None


class _Details(msgspec.Struct, frozen=True):
    causes: list[_Cause] | None = None


class _Status(msgspec.Struct, frozen=True):
    status: str | None = None
    message: str | None = None
    reason: str | None = None
    details: _Details | None = None


class StartError(SourceError):
    """The node has not run the command; the message is the kubelet's."""


class PodExec:
    """A running command; a context manager that closes the connection.

    The constructor starts it, and waits until `deadline` at most. Raises ApiStatusError,
    UnreachableError, DeadlineError. Every other method raises SourceError.
    """

    def __init__(
        self,
        client: Client,
        where: Container,
        command: Sequence[str],
        deadline: Deadline,
        *,
        stdin: bool = False,
    ) -> None:
        query = [("container", where.name), ("stdout", "true"), ("stderr", "true")]
        query += [("stdin", "true")] if stdin else []
        query += [("command", word) for word in command]
        path = f"/api/v1/namespaces/{quote(where.namespace)}/pods/{quote(where.pod)}/exec"
        connection = client.connect(deadline.left() or CONNECT_TIMEOUT)
        headers = {"User-Agent": "pyproxy"}
        if connection.authorization:
            headers["Authorization"] = connection.authorization
        target = f"{connection.path}{path}?{urlencode(query)}"
        upgrade = Upgrade(connection.netloc, target, _PROTOCOLS, headers)
        try:
            self._socket = WebSocket(connection.socket, upgrade, deadline)
        except HandshakeError as error:
            connection.socket.close()
            raise _refusal(path, error) from None
        except SourceError:
            connection.socket.close()
            raise
        except OSError as error:
            connection.socket.close()
            raise UnreachableError(f"{connection.netloc}: {error.strerror or error}") from error
        self._status = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Write to the input of a command that was started with `stdin`."""
        try:
            self._socket.send(bytes([_STDIN]) + data)
        except OSError as error:
            raise UnreachableError(f"connection lost: {error.strerror or error}") from error

    def output(self) -> Iterator[tuple[int, bytes]]:
        """Yield the output in parts, each with STDOUT or STDERR, until the command ends."""
        try:
            for channel, data in self._socket.parts():
                if channel in (STDOUT, STDERR):
                    yield channel, data
                elif channel == _ERROR and len(self._status) < _LARGEST_STATUS:
                    self._status += data
        except OSError as error:
            raise UnreachableError(f"connection lost: {error.strerror or error}") from error

    def exit_status(self) -> int:
        """Return the exit status of a command whose output has ended. Raises StartError."""
        try:
            status = msgspec.json.decode(self._status, type=_Status)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UnreachableError("the connection was closed before the command's end") from None
        if status.status == "Success":
            return 0
        for cause in (status.details.causes if status.details else None) or ():
            code = cause.message or ""
            if cause.reason == "ExitCode" and code.isascii() and code.isdigit():
                return int(code[:3])
        raise StartError(one_line(status.message or "the command failed", _LONGEST_TEXT))

    def close(self) -> None:
        """Close the connection, and with it the command's input; may be called twice.

        The node does not end the command.
        """
        with contextlib.suppress(OSError):
            self._socket.close()


def _refusal(path: str, error: HandshakeError) -> SourceError:
    if not error.status:
        return UnreachableError(f"{path}: {error}")
    text, from_api = "", False
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        status = msgspec.json.decode(error.body, type=wire.Status)
        text, from_api = status.message or "", status.kind == "Status"
    shown = one_line(" ".join(text.split()), _LONGEST_TEXT)
    return ApiStatusError(
        f"{path}: {error.status} {shown}".rstrip(), error.status, from_api=from_api
    )
