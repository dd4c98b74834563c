"""The subresource portforward of pods: connections to a pod's ports, in SPDY inside a WebSocket.

kubectl opens two streams for each connection, with the same requestID: one for errors, one for the
data. Facts: Kubernetes' enhancement 4006 and k8s.io/client-go/tools/portforward.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from aiohttp import WSMsgType, web

from pyproxy_lab.apiserver import spdy, status
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.spdy import Frame, Framer, Kind, SpdyError

_PROTOCOL = "SPDY/3.1+portforward.k8s.io"
_LARGEST_MESSAGE = 1 << 20
_PART = 1 << 15
_MOST_STREAMS = 1024

Dialer = Callable[[Object, int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Connects to a port inside a pod. Raises OSError."""


class PortForwardHandler:
    """Handles requests for portforward; `dial` takes the place of all kubelets."""

    def __init__(self) -> None:
        self.dial: Dialer | None = None

    async def handle(self, request: web.Request, pod: Object) -> web.StreamResponse:
        """Forward connections until the client closes its own. Raises ApiError."""
        if self.dial is None or pod.get("status", {}).get("phase") != "Running":
            name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase", "Pending")
            raise status.bad_request(f"pod {name} is not running: its phase is {phase}")
        socket = web.WebSocketResponse(protocols=(_PROTOCOL,), max_msg_size=_LARGEST_MESSAGE)
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if _PROTOCOL not in offered or not socket.can_prepare(request):
            raise status.bad_request(
                f"the lab serves port-forward as {_PROTOCOL} over WebSocket: use kubectl 1.31 or "
                "newer"
            )
        await socket.prepare(request)
        await _Forwarding(socket, pod, self.dial).run()
        return socket


class _Forwarding:
    """The streams of one client."""

    def __init__(self, socket: web.WebSocketResponse, pod: Object, dial: Dialer) -> None:
        self._socket = socket
        self._pod = pod
        self._dial = dial
        self._framer = Framer()
        self._errors: dict[str, int] = {}
        self._inputs: dict[int, asyncio.StreamReader] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Read frames until the client has closed the connection."""
        try:
            async for message in self._socket:
                if message.type is WSMsgType.BINARY:
                    for frame in self._framer.feed(message.data):
                        await self._receive(frame)
        except (ConnectionError, SpdyError):
            pass  # the client has closed the connection, or sent none of this protocol
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._socket.close()

    async def _receive(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.SYN_STREAM:
                await self._open(frame)
            case Kind.DATA if frame.stream in self._inputs:
                self._inputs[frame.stream].feed_data(frame.data)
                if frame.end:
                    self._inputs.pop(frame.stream).feed_eof()
            case Kind.RST_STREAM if frame.stream in self._inputs:
                self._inputs.pop(frame.stream).feed_eof()
            case Kind.PING:
                await self._socket.send_bytes(spdy.ping(frame.data))

    async def _open(self, frame: Frame) -> None:
        headers = {name.lower(): value for name, value in frame.headers.items()}
        number, port = headers.get("requestid", ""), headers.get("port", "")
        if len(self._tasks) + len(self._errors) >= _MOST_STREAMS or not port.isdigit():
            raise SpdyError("too many streams, or one without a port")
        await self._socket.send_bytes(self._framer.reply(frame.stream))
        if headers.get("streamtype") == "error":
            self._errors[number] = frame.stream
            return
        source = self._inputs[frame.stream] = asyncio.StreamReader()
        error_stream = self._errors.pop(number, 0)
        task = asyncio.ensure_future(self._forward(frame.stream, error_stream, int(port), source))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(
        self, stream: int, error_stream: int, port: int, source: asyncio.StreamReader
    ) -> None:
        """Connect to the pod, and copy in both directions until both have ended."""
        failure = b""
        try:
            reader, writer = await self._dial(self._pod, port)
        except OSError as error:
            name = self._pod["metadata"]["name"]
            failure = f"failed to connect to port {port} of pod {name}: {error.strerror}".encode()
        else:
            await asyncio.gather(_copy(source, writer), self._send(reader, stream))
            writer.close()
        self._inputs.pop(stream, None)
        with contextlib.suppress(ConnectionError):
            if failure:
                await self._socket.send_bytes(spdy.data(stream, b"", end=True))
            if error_stream:
                await self._socket.send_bytes(spdy.data(error_stream, failure, end=True))

    async def _send(self, reader: asyncio.StreamReader, stream: int) -> None:
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(_PART):
                await self._socket.send_bytes(spdy.data(stream, part))
        # The client's own end then ends this connection, whose pod has closed it.
        await self._socket.send_bytes(spdy.data(stream, b"", end=True))


async def _copy(source: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while part := await source.read(_PART):
            writer.write(part)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
