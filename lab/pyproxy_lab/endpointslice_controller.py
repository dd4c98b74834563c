"""A small EndpointSlice controller: pods become slices of the Services that select them.

It works against the API over HTTP, in a thread of its own: it lists and watches services, pods,
nodes and slices, and writes the slices that differ from what `endpointslices.plan` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec

from pyproxy_lab import endpointslices, namespace
from pyproxy_lab.endpointslices import CONTROLLER, MANAGED_BY, SERVICE_NAME, ZONE, Object

log = logging.getLogger(__name__)

_SERVICES = "/api/v1/services"
_PODS = "/api/v1/pods"
_NODES = "/api/v1/nodes"
_SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_READ_SIZE = 256 * 1024

Name = tuple[str, str]
"""An object's namespace and name."""


class _RequestError(Exception):
    """The API responded with an error; the request is retried."""


class Controller:
    """Follows the API until it is stopped."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._services: dict[Name, Object] = {}
        self._pods: dict[Name, Object] = {}
        self._nodes: dict[Name, Object] = {}
        self._slices: dict[Name, Object] = {}
        self._dirty: dict[Name, str] = {}
        self._wake = asyncio.Event()

    @classmethod
    @contextlib.contextmanager
    def running(cls, url: str, token: str = "", netns: str = "") -> Iterator[Controller]:
        """Run a controller in a thread of its own, which connects in the network namespace `netns`.

        Empty stands for this process's own. The server's certificate is not checked.
        """
        loop = asyncio.new_event_loop()
        controller = cls(url, token)
        task = loop.create_task(controller.run())

        def work() -> None:
            if netns:
                namespace.enter(netns)
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
            loop.close()

        thread = threading.Thread(target=work, name="endpointslices", daemon=True)
        thread.start()
        try:
            yield controller
        finally:
            with contextlib.suppress(RuntimeError):  # It has ended by itself: the loop is closed.
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    async def run(self) -> None:
        """Follow the API, and write slices, until cancelled."""
        connector = aiohttp.TCPConnector(ssl=False)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(
            self._url, headers=self._headers, connector=connector, timeout=timeout,
            read_bufsize=_READ_SIZE,
        ) as session, asyncio.TaskGroup() as group:  # fmt: skip
            listed = []
            for path, cache, changed in (
                (_SERVICES, self._services, self._service_changed),
                (_PODS, self._pods, self._pod_changed),
                (_NODES, self._nodes, self._node_changed),
                (_SLICES, self._slices, self._slice_changed),
            ):
                ready = asyncio.Event()
                listed.append(ready)
                group.create_task(_Follower(session, path, cache, changed, ready).run())
            for ready in listed:
                await ready.wait()
            await self._work(session)

    async def _work(self, session: aiohttp.ClientSession) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                name = next(iter(self._dirty))
                triggered = self._dirty.pop(name)
                try:
                    await self._sync(session, name, triggered)
                    pause = _FIRST_PAUSE
                except (_RequestError, aiohttp.ClientError) as error:
                    log.debug("slices of %s/%s: %s: trying again", *name, error)
                    self._dirty.setdefault(name, triggered)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)

    async def _sync(self, session: aiohttp.ClientSession, name: Name, triggered: str) -> None:
        service = self._services.get(name)
        existing = [s for s in self._slices.values() if _owner(s) == name]
        if service is None:
            plan = endpointslices.Plan(delete=tuple(existing))
        elif not service["spec"].get("selector") or service["spec"]["type"] == "ExternalName":
            # Slices of a Service without selector are not this controller's; its old ones stay.
            return
        else:
            pods = [
                pod
                for (namespace, _), pod in self._pods.items()
                if namespace == name[0] and endpointslices.selects(service, _labels(pod))
            ]
            zones = {node: _labels(obj).get(ZONE, "") for (_, node), obj in self._nodes.items()}
            plan = endpointslices.plan(service, pods, zones, existing, triggered)
        for obj in plan.create:
            await self._write(session, "POST", _path(obj, of_list=True), obj)
        for obj in plan.update:
            await self._write(session, "PUT", _path(obj), obj)
        for obj in plan.delete:
            async with session.delete(_path(obj)) as response:
                if response.status not in {200, 404}:
                    raise _RequestError(f"DELETE: {response.status}")
            self._slices.pop(_name(obj), None)

    async def _write(
        self, session: aiohttp.ClientSession, method: str, path: str, obj: Object
    ) -> None:
        async with session.request(method, path, json=obj) as response:
            body = await response.read()
        if response.status not in {200, 201}:
            raise _RequestError(f"{method}: {response.status} {body[:300]!r}")
        stored = msgspec.json.decode(body)
        # The watch may be behind what was just written, and the next plan must know it.
        self._slices[_name(stored)] = stored

    def _mark(self, name: Name) -> None:
        # Of several changes the first is the one whose delay counts.
        self._dirty.setdefault(name, datetime.now(UTC).isoformat().replace("+00:00", "Z"))
        self._wake.set()

    def _service_changed(self, old: Object | None, new: Object | None) -> None:
        self._mark(_name(new or old or {}))

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        for name, service in self._services.items():
            for pod in filter(None, (old, new)):
                if name[0] == _name(pod)[0] and endpointslices.selects(service, _labels(pod)):
                    self._mark(name)

    def _node_changed(self, old: Object | None, new: Object | None) -> None:
        if _labels(old or {}).get(ZONE) != _labels(new or {}).get(ZONE):
            for name in self._services:
                self._mark(name)

    def _slice_changed(self, old: Object | None, new: Object | None) -> None:
        for found in filter(None, (old, new)):
            if owner := _owner(found):
                self._mark(owner)


class _Follower:
    """Keeps a cache of one kind up to date by list and watch."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        path: str,
        cache: dict[Name, Object],
        changed: Callable[[Object | None, Object | None], None],
        listed: asyncio.Event,
    ) -> None:
        self._session = session
        self._path = path
        self._cache = cache
        self._changed = changed
        self._listed = listed

    async def run(self) -> None:
        """List, then watch; list again when the watch cannot go on."""
        pause = _FIRST_PAUSE
        while True:
            try:
                version = await self._list()
                pause = _FIRST_PAUSE
                self._listed.set()
                while version:
                    version = await self._watch(version)
            except (_RequestError, aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
                log.debug("%s: %s: listing again", self._path, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _list(self) -> str:
        async with self._session.get(self._path) as response:
            body: Any = msgspec.json.decode(await response.read())
        if response.status != 200:
            raise _RequestError(f"GET: {response.status}")
        found = {_name(item): item for item in body["items"]}
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
                raise _RequestError(f"watch: {response.status}")
            async for line in _lines(response):
                event: Any = msgspec.json.decode(line)
                obj = event["object"]
                if event["type"] == "ERROR":
                    return ""
                version = obj["metadata"]["resourceVersion"]
                if event["type"] == "DELETED":
                    self._drop(_name(obj), obj)
                elif event["type"] != "BOOKMARK":
                    self._put(_name(obj), obj)
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


def _name(obj: Object) -> Name:
    meta = obj["metadata"]
    return meta.get("namespace", ""), meta["name"]


def _labels(obj: Object) -> dict[str, str]:
    labels: dict[str, str] = obj.get("metadata", {}).get("labels") or {}
    return labels


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _owner(found: Object) -> Name | None:
    """Return the Service of a slice that this controller manages."""
    labels = _labels(found)
    if labels.get(MANAGED_BY) != CONTROLLER or SERVICE_NAME not in labels:
        return None
    return found["metadata"]["namespace"], labels[SERVICE_NAME]


def _path(obj: Object, of_list: bool = False) -> str:
    meta = obj["metadata"]
    base = f"/apis/discovery.k8s.io/v1/namespaces/{meta['namespace']}/endpointslices"
    return base if of_list else f"{base}/{meta['name']}"
