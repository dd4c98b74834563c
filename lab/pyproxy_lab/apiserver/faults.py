"""Faults: the responses of an API server, or of a load balancer before it, that is failing.

`ApiServer.faults` sets them. They apply to HTTP, from the next response or line of a watch on, and
never to `ApiServer.load`. Other failures need none of them: `ApiServer.away` refuses connections,
`expire_watches` and `forget_history` cause 410, and a second server on the first one's port has
another history.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from random import Random
from typing import TypeVar

import msgspec
from aiohttp import web

from pyproxy_lab.apiserver import protobuf
from pyproxy_lab.apiserver.status import ApiError

_PAGE = b"<!DOCTYPE html><html><title>Sign in</title><body>Sign in to go on.</body></html>\n"
_BOOKMARKS = (b'"type":"BOOKMARK"', b"\n\x08BOOKMARK")
"""The types of bookmarks in JSON and in protobuf."""

_LATE = 0.05
"""Seconds at most by which disorder delays a line."""


class ErrorStatus(msgspec.Struct, frozen=True):
    """Every request is answered with this status; `retry_after` is in seconds, 0 for no header."""

    code: int = 500
    retry_after: int = 0


class Page(msgspec.Struct, frozen=True):
    """Every request is answered with 200 and an HTML page, as by a proxy that wants a login."""


class Cut(msgspec.Struct, frozen=True):
    """Lists end in the middle, watches in the middle of a line."""


class HalfOpen(msgspec.Struct, frozen=True):
    """Watches stay connected, and nothing comes: a watch that this has met never speaks again."""


class Slow(msgspec.Struct, frozen=True):
    """Every answer, and every chunk of a watch, comes so many seconds late."""

    seconds: float


class ShortWatches(msgspec.Struct, frozen=True):
    """Watches end after so many seconds."""

    seconds: float = 1.0


class Disorder(msgspec.Struct, frozen=True):
    """Watches repeat lines, and send some later than those that follow them."""


class Rewrite(msgspec.Struct, frozen=True):
    """Lists and watches have `new` for each `old`, which may make malformed JSON of an object."""

    old: bytes
    new: bytes


Fault = ErrorStatus | Page | Cut | HalfOpen | Slow | ShortWatches | Disorder | Rewrite
F = TypeVar("F", bound=Fault)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Faults:
    """The faults of one server; `set` and `clear` may be called from any thread.

    `met` counts, by the fault's class, the answers and watches that were spoilt.
    """

    def __init__(self, seed: int = 0) -> None:
        self.met: Counter[type] = Counter()
        self._now: tuple[Fault, ...] = ()
        self._share = 1.0
        self._random = Random(seed)  # noqa: S311 (it decides about nothing secret)

    def set(self, *faults: Fault, share: float = 1.0) -> None:
        """Have these faults, and no others, in about this share of the answers."""
        self._now, self._share = faults, share

    def clear(self) -> None:
        """Have no more faults."""
        self.set()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Respond in the server's place, or late; the server's application calls it."""
        if slow := self._strikes(Slow):
            await asyncio.sleep(slow.seconds)
        if error := self._strikes(ErrorStatus):
            return _error_response(error)
        if self._strikes(Page):
            return web.Response(body=_PAGE, content_type="text/html")
        return await handler(request)

    def body(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Pass on the pieces of a list's body, or what a fault leaves of them."""
        rewrite, cut = self._strikes(Rewrite), self._strikes(Cut)
        if not (rewrite or cut):
            yield from pieces
            return
        whole = b"".join(pieces)
        if rewrite:
            whole = whole.replace(rewrite.old, rewrite.new)
        yield whole[: len(whole) // 2] if cut else whole

    async def stream(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass on the chunks of a watch, each of whole lines, or what faults leave of them."""
        loop = asyncio.get_running_loop()
        short = self._strikes(ShortWatches)
        end = loop.time() + short.seconds if short else None
        late: list[bytes] = []
        following = asyncio.ensure_future(_next(chunks))
        try:
            while True:
                patience = _LATE if late else None if end is None else max(0.0, end - loop.time())
                await asyncio.wait([following], timeout=patience)
                if not following.done() and not late:
                    return
                chunk = following.result() if following.done() else b""
                if chunk is None:
                    yield b"".join(late)
                    return
                if self._strikes(HalfOpen):
                    await loop.create_future()  # until the client leaves
                if slow := self._strikes(Slow):
                    await asyncio.sleep(slow.seconds)
                if rewrite := self._strikes(Rewrite):
                    chunk = chunk.replace(rewrite.old, rewrite.new)
                if chunk and self._strikes(Cut):
                    yield chunk[: len(chunk) - len(chunk) // 3]
                    return
                yield self._ordered(chunk, late)
                if following.done():
                    following = asyncio.ensure_future(_next(chunks))
        finally:
            following.cancel()

    def _ordered(self, chunk: bytes, late: list[bytes]) -> bytes:
        """Return what is sent in a chunk's place; what it holds back goes into `late`."""
        before = b"".join(late)
        late.clear()
        if not chunk or any(each in chunk for each in _BOOKMARKS) or not self._strikes(Disorder):
            # A bookmark says that all before it has been sent, and is no fault's to move.
            return before + chunk
        is_json = chunk.startswith(b"{")
        lines = chunk.splitlines(keepends=True) if is_json else protobuf.events(chunk)
        lines += self._random.choices(lines, k=self._random.randint(0, 2))
        self._random.shuffle(lines)
        late.append(lines.pop())
        return b"".join(lines) + before

    def _of(self, kind: type[F]) -> F | None:
        return next((fault for fault in self._now if isinstance(fault, kind)), None)

    def _strikes(self, kind: type[F]) -> F | None:
        fault = self._of(kind)
        if fault is None or self._random.random() >= self._share:
            return None
        self.met[kind] += 1
        return fault


def _error_response(fault: ErrorStatus) -> web.Response:
    error = ApiError(fault.code, "InternalError", "injected fault")
    headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after else {}
    return web.Response(
        status=fault.code,
        body=msgspec.json.encode(error.status),
        content_type="application/json",
        headers=headers,
    )


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)
