"""The subresources exec and attach of pods: a command's streams over WebSocket.

The subprotocols are v5.channel.k8s.io and v4.channel.k8s.io of Kubernetes' remotecommand: the first
byte of each message is its channel. The server sends the end of the command as a Status on the
error channel. In v5, a client closes its stdin with a message on channel 255. A client with a
terminal sends its size on channel 4.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import WSMsgType, web
from multidict import MultiMapping

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.requests import is_true
from pyproxy_lab.apiserver.store import encode

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
_CLOSE = 255
_V5, _V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
_LARGEST_MESSAGE = 1 << 20

_AFTER_CLIENT = 5.0
"""Seconds that a command may run on after its client has closed the connection."""


class TerminalSize(msgspec.Struct, frozen=True, rename="pascal"):
    """The size of a client's terminal, in characters."""

    width: int
    height: int


class Request(msgspec.Struct, frozen=True):
    """A command for one container of a pod; no command attaches to the container's own."""

    pod: Object
    container: str
    command: tuple[str, ...]
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


class Streams:
    """The client's end of a command's streams. Its methods belong to the server's event loop."""

    def __init__(self, socket: web.WebSocketResponse, request: Request) -> None:
        self._socket = socket
        self._open = {STDOUT: request.stdout, STDERR: request.stderr}
        self.stdin = asyncio.StreamReader()
        """The client's input, at its end once the client closes it or its connection."""
        self.resized: Callable[[TerminalSize], None] = _ignore_size
        """Receives each new size of the client's terminal."""
        if not request.stdin:
            self.stdin.feed_eof()

    async def write(self, channel: int, data: bytes) -> None:
        """Send output on a channel; a channel that the client has not asked for discards it.

        Raises ConnectionError if the client has closed the connection.
        """
        if self._open[channel]:
            await self._socket.send_bytes(bytes([channel]) + data)

    async def end(self, result: Object) -> None:
        """Send the command's end."""
        await self._socket.send_bytes(bytes([ERROR]) + encode(result))

    async def read(self) -> None:
        """Read the client's messages until it closes the connection."""
        async for message in self._socket:
            data = message.data if message.type is WSMsgType.BINARY else message.data.encode()
            if data[:1] == bytes([STDIN]) and not self.stdin.at_eof():
                self.stdin.feed_data(data[1:])
            elif data == bytes([_CLOSE, STDIN]) and self._socket.ws_protocol == _V5:
                self.stdin.feed_eof()
            elif data[:1] == bytes([RESIZE]):
                with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                    self.resized(msgspec.json.decode(data[1:], type=TerminalSize))
        self.stdin.feed_eof()


def _ignore_size(size: TerminalSize) -> None:
    """Ignore the size of a terminal that the command does not have."""


Runner = Callable[[Request, Streams], Awaitable[int]]
"""Runs a command and returns its exit status. Raises StartError."""


class StartError(Exception):
    """A kubelet or its container runtime could not start the command."""


class ExecHandler:
    """Handles requests for exec; `runner` takes the place of all kubelets."""

    def __init__(self) -> None:
        self.runner: Runner | None = None
        self.open = 0
        """Commands that run now."""
        self.most = 0
        """The largest number of commands that have run at the same time."""

    async def handle(
        self, request: web.Request, pod: Object, *, attach: bool = False
    ) -> web.StreamResponse:
        """Run a command in a pod, or attach to the one that runs. Raises ApiError."""
        wanted = _request(pod, request.query, attach=attach)
        runner = self.runner
        if runner is None:
            node = pod["spec"]["nodeName"]
            raise status.ApiError(500, "", f"error dialing backend: dial tcp: lookup {node}", {})
        socket = web.WebSocketResponse(protocols=(_V5, _V4), max_msg_size=_LARGEST_MESSAGE)
        if request.headers.get("Upgrade", "").lower().startswith("spdy"):
            raise status.bad_request(
                "the lab serves exec and attach over WebSocket alone: use kubectl 1.31 or newer"
            )
        if not socket.can_prepare(request):
            raise status.bad_request("Upgrade request required")
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await socket.prepare(request)
            await _run(runner, wanted, Streams(socket, wanted))
            await socket.close()
        except ConnectionError:
            pass  # the client has closed the connection
        finally:
            self.open -= 1
        return socket


async def _run(runner: Runner, wanted: Request, streams: Streams) -> None:
    # As the API server, before any output: it says that the connection stands.
    await streams.write(STDOUT, b"")
    reading = asyncio.ensure_future(streams.read())
    running = asyncio.ensure_future(runner(wanted, streams))
    try:
        await asyncio.wait({reading, running}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            # A runtime does not end a command whose client is gone: its input ends, and its output
            # has no reader.
            await asyncio.wait({running}, timeout=_AFTER_CLIENT)
            return
        await streams.end(_end(running))
    finally:
        for task in (reading, running):
            task.cancel()
        await asyncio.gather(reading, running, return_exceptions=True)


def _end(running: asyncio.Future[int]) -> Object:
    """Return the Status of a command that has ended."""
    try:
        code = running.result()
    except StartError as error:
        return {
            "metadata": {},
            "status": "Failure",
            "message": f"Internal error occurred: {error}",
            "reason": "InternalError",
            "details": {"causes": [{"message": str(error)}]},
            "code": 500,
        }
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with exit code {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def container_of(pod: Object, wanted: str) -> str:
    """Return the container that a request means, empty for a pod's only one. Raises ApiError."""
    name = pod["metadata"]["name"]
    containers = [each["name"] for each in pod["spec"]["containers"]]
    if not wanted:
        if len(containers) > 1:
            raise status.bad_request(
                f"a container name must be specified for pod {name}, choose one of: "
                f"[{' '.join(containers)}]"
            )
        return str(containers[0])
    if wanted not in containers:
        raise status.bad_request(f"container {wanted} is not valid for pod {name}")
    return wanted


def _request(pod: Object, query: MultiMapping[str] | Mapping[str, str], *, attach: bool) -> Request:
    """Read PodExecOptions or PodAttachOptions from a query. Raises ApiError (400)."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    command = tuple(query.getall("command", [])) if isinstance(query, MultiMapping) else ()
    if not command and not attach:
        raise status.bad_request("you must specify a command for the exec")
    if not any(is_true(query, each) for each in ("stdin", "stdout", "stderr")):
        raise status.bad_request("you must specify at least 1 of stdin, stdout, stderr")
    if not spec.get("nodeName"):
        raise status.bad_request(f"pod {name} does not have a host assigned")
    container = container_of(pod, query.get("container", ""))
    return Request(
        pod,
        container,
        command,
        stdin=is_true(query, "stdin"),
        stdout=is_true(query, "stdout"),
        stderr=is_true(query, "stderr"),
        tty=is_true(query, "tty"),
    )
