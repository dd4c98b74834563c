"""Keep a cache of one kind's objects up to date by list and watch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import msgspec

from pyproxy_lab import namespace
from pyproxy_lab.client import JsonObject as Object
from pyproxy_lab.failures import FailureLog

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two attempts, doubled from the first to the longest."""

_READ_SIZE = 256 * 1024

Name = tuple[str, str]
"""An object's namespace, empty for none, and name."""

Changed = Callable[[Object | None, Object | None], None]
"""Receives an object before and after a change; None if it did not or does not exist."""


def unnoticed(old: Object | None, new: Object | None) -> None:
    """Do nothing: the cache alone is of use."""


class RequestError(Exception):
    """The API responded with an error; the request is retried."""


@contextlib.contextmanager
def in_thread(work: Coroutine[Any, Any, None], name: str, netns: str = "") -> Iterator[None]:
    """Run a coroutine in a thread of its own until the block ends, and cancel it then.

    Its calls of asyncio.to_thread have ended too when the block is left.
    The thread is in the network namespace `netns`, empty for this process's own.
    """
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def run() -> None:
        if netns:
            namespace.enter(netns)
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        # A cancelled call of to_thread still runs, and may be making a namespace.
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # It has ended by itself: the loop is closed.
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def session(url: str, token: str) -> aiohttp.ClientSession:
    """Make a session for watches; the server's certificate is not checked."""
    return aiohttp.ClientSession(
        url,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        connector=aiohttp.TCPConnector(ssl=False),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        read_bufsize=_READ_SIZE,
    )


async def follow(
    session: aiohttp.ClientSession,
    group: asyncio.TaskGroup,
    kinds: list[tuple[str, dict[Name, Object], Changed]],
) -> None:
    """Start a reflector for each path, cache and callback; return once all have listed."""
    listed = []
    for path, cache, changed in kinds:
        listed.append(asyncio.Event())
        group.create_task(Reflector(session, path, cache, changed, listed[-1]).run())
    for ready in listed:
        await ready.wait()


class Reflector:
    """Keeps a cache of one kind up to date by list and watch."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        path: str,
        cache: dict[Name, Object],
        changed: Changed,
        listed: asyncio.Event,
    ) -> None:
        self._session = session
        self._path = path
        self._cache = cache
        self._on_change = changed
        self._failures = FailureLog()
        self._listed = listed

    async def run(self) -> None:
        """List, then watch; list again when the watch cannot go on, whatever the reason."""
        pause = FIRST_PAUSE
        unexpected = f"cannot follow {self._path}: listing again"
        while True:
            try:
                version = await self._list()
                pause = FIRST_PAUSE
                self._failures.forget(unexpected)
                self._listed.set()
                while version:
                    version = await self._watch(version)
            except (RequestError, aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
                log.debug("%s: %s: listing again", self._path, error)
            except Exception:
                # Such as an object without metadata: the caches of other kinds go on.
                self._failures.report(unexpected)
            else:
                continue
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _changed(self, old: Object | None, new: Object | None) -> None:
        """Call back; an object that the callback does not understand ends no watch."""
        name = "/".join(filter(None, name_of(new or old or {})))
        unexpected = f"cannot handle a change of {self._path} {name}"
        try:
            self._on_change(old, new)
        except Exception:
            self._failures.report(unexpected)
            if new is not None:
                return
        self._failures.forget(unexpected)

    async def _list(self) -> str:
        async with self._session.get(self._path) as response:
            body: Any = msgspec.json.decode(await response.read())
        if response.status != 200:
            raise RequestError(f"GET: {response.status}")
        found = {name_of(item): item for item in body["items"]}
        for name in self._cache.keys() - found.keys():
            self._changed(self._cache.pop(name), None)
        for name, obj in found.items():
            self._put(name, obj)
        return str(body["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        """Watch until the server ends it; return where to go on, or nothing to list again."""
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        async with self._session.get(self._path, params=query) as response:
            if response.status != 200:
                raise RequestError(f"watch: {response.status}")
            async for line in _lines(response):
                event: Any = msgspec.json.decode(line)
                obj = event["object"]
                if event["type"] == "ERROR":
                    return ""
                version = obj["metadata"]["resourceVersion"]
                if event["type"] == "DELETED":
                    self._drop(name_of(obj), obj)
                elif event["type"] != "BOOKMARK":
                    self._put(name_of(obj), obj)
        return version

    def _put(self, name: Name, obj: Object) -> None:
        old = self._cache.get(name)
        if old is not None and _version(old) >= _version(obj):
            return
        self._cache[name] = obj
        self._changed(old, obj)

    def _drop(self, name: Name, obj: Object) -> None:
        old = self._cache.get(name)
        if old is not None and _version(old) <= _version(obj):
            self._changed(self._cache.pop(name), None)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def name_of(obj: Object) -> Name:
    """Return the key of an object in a cache."""
    meta = obj["metadata"]
    return meta.get("namespace", ""), meta["name"]


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
