"""The subresource log of pods: the lines that a container has written to its log file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from pyproxy_lab.apiserver import status
from pyproxy_lab.apiserver.exec import container_of
from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.requests import is_true

_PERIOD = 0.1
"""Seconds between two reads of a log that a client follows."""

_PART = 1 << 16
_REFUSED = ("sinceSeconds", "sinceTime", "timestamps", "previous", "limitBytes")


class LogSource:
    """Where the log of one pod is, and whether it may still grow."""

    def __init__(self, path: Path, grows: Callable[[], bool]) -> None:
        self.path = path
        self.grows = grows


class LogHandler:
    """Handles requests for logs; `find` takes the place of all kubelets."""

    def __init__(self) -> None:
        self.find: Callable[[Object, str], LogSource | None] | None = None

    async def handle(self, request: web.Request, pod: Object) -> web.StreamResponse:
        """Send a log, whole or its last lines, and what is appended if the client follows it.

        Raises ApiError.
        """
        query = request.query
        container = container_of(pod, query.get("container", ""))
        for name in _REFUSED:
            if query.get(name, "") not in {"", "0", "false"}:
                raise status.bad_request(f"the lab's logs have no option {name}")
        tail = query.get("tailLines", "")
        if tail and not (tail.isascii() and tail.isdigit()):
            raise status.bad_request(f"tailLines: {tail} is no number of lines")
        source = self.find(pod, container) if self.find else None
        if source is None:
            name = pod["metadata"]["name"]
            why = f'container "{container}" in pod "{name}" is waiting to start: ContainerCreating'
            raise status.bad_request(why)
        data = _read(source.path, 0)
        start = data if not tail else last_lines(data, int(tail))
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        try:
            await response.prepare(request)
            await response.write(start)
            if is_true(query, "follow"):
                await _follow(response, source, len(data))
            await response.write_eof()
        except ConnectionResetError:
            pass  # the client has closed the connection
        return response


def last_lines(data: bytes, count: int) -> bytes:
    """Return the last `count` lines; the last one may be without its end."""
    if count == 0:
        return b""
    return b"".join(data.splitlines(keepends=True)[-count:])


async def _follow(response: web.StreamResponse, source: LogSource, position: int) -> None:
    while True:
        grows = source.grows()
        if position > _size(source.path):
            position = 0  # the log was cut
        while data := _read(source.path, position, _PART):
            position += len(data)
            await response.write(data)
        if not grows:
            return
        await asyncio.sleep(_PERIOD)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path, position: int, most: int = -1) -> bytes:
    """Read a log from a position on. A log that is gone with its pod is empty."""
    try:
        with path.open("rb") as log:
            log.seek(position)
            return log.read(most)
    except FileNotFoundError:
        return b""
