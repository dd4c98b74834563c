"""A model of kube-proxy's requests: client-go's reflectors, without what they do with objects.

Facts, of kube-proxy and client-go v1.36: Services without the label service-proxy-name and with a
clusterIP other than None; EndpointSlices without the label headless; the own Node.
Objects are requested in protobuf. The feature WatchListClient, on since 1.35, lists by a watch with
sendInitialEvents. timeoutSeconds is drawn from 300 to 600. A watch that ends goes on from its last
version, also after a refused connection. After an error within a watch, such as 410 or a ping of
HTTP/2 without a response, everything is listed again, from the last version on. Delays begin with
0.8 to 1.6 s and double up to 30 to 60 s. One Event reports the start.

Left out: the watch of ServiceCIDRs, which the lab's API server does not have, and HTTP/2, whose
heads are shorter. The Event is posted as JSON.
"""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from typing import NamedTuple

import aiohttp

from pyproxy.errors import SourceError
from pyproxy.source import protobuf_objects, protobuf_stream
from pyproxy_lab.bench.fleet.server import TOKEN, node_name

_ACCEPT = "application/vnd.kubernetes.protobuf,application/json"
_USER_AGENT = "kube-proxy/v1.36.2 (linux/amd64) kubernetes/0123456"
_WATCH_SECONDS = 300.0
_FIRST_DELAY, _LONGEST_DELAY = 0.8, 30.0
_CHUNK = 1 << 18
_LENGTH = 4


class Watched(NamedTuple):
    """A resource that kube-proxy watches."""

    path: str
    selector: dict[str, str]


def watched(node: str) -> list[Watched]:
    """Return the resources of a kube-proxy on a node."""
    return [
        Watched(
            "/api/v1/services",
            {
                "labelSelector": "!service.kubernetes.io/service-proxy-name",
                "fieldSelector": "spec.clusterIP!=None",
            },
        ),
        Watched(
            "/apis/discovery.k8s.io/v1/endpointslices",
            {"labelSelector": "!service.kubernetes.io/headless"},
        ),
        Watched("/api/v1/nodes", {"fieldSelector": f"metadata.name={node}"}),
    ]


class Reflector:
    """Lists and watches one resource.

    `version` is that of the last event, empty before the first list.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, resource: Watched, fleet: KubeProxies
    ) -> None:
        self.version = ""
        self.lists = 0
        self.is_of_slices = resource.path.endswith("endpointslices")
        self._session = session
        self._url = url + resource.path
        self._selector = resource.selector
        self._fleet = fleet
        self._delay = _FIRST_DELAY
        self._lists = True

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            self._lists = True
            # An error of the server or within a watch leads to a new list.
            with suppress(SourceError, aiohttp.ClientResponseError):
                while await self._watch():
                    pass
            await self._back_off()

    async def _watch(self) -> bool:
        """List if that is due, and watch from the last version on; return whether to go on."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(_WATCH_SECONDS * random.uniform(1, 2))),  # noqa: S311
        }
        if self._lists:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        if self.version:
            query["resourceVersion"] = self.version
        try:
            async with self._session.get(self._url, params=self._selector | query) as response:
                response.raise_for_status()
                await self._read(response.content)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
            # A refused connection is tried again, one that times out is not. The next request after
            # a lost one finds out.
            if self._fleet.partitioned or self._lists:
                return False
            await self._back_off()
        return True

    async def _read(self, content: aiohttp.StreamReader) -> None:
        held = bytearray()
        async for chunk in content.iter_chunked(_CHUNK):
            held += chunk
            while len(held) >= _LENGTH and len(held) >= (end := _LENGTH + _size(held)):
                event = protobuf_stream.event(bytes(held[_LENGTH:end]))
                del held[:end]
                if event.type == "BOOKMARK":
                    meta = protobuf_stream.bookmark(event.object)
                    self.lists += self._lists
                    # A list ends with a bookmark, and its response goes on as the watch.
                    self.version, self._lists = meta.resource_version or "", False
                    self._delay = _FIRST_DELAY
                elif not self._lists:
                    found = protobuf_objects.identified(event.object.data)
                    self.version = found.metadata.resource_version or ""

    async def _back_off(self) -> None:
        delay = random.uniform(self._delay, 2 * self._delay)  # noqa: S311
        self._delay = min(2 * self._delay, _LONGEST_DELAY)
        await asyncio.sleep(delay / self._fleet.speed)


def _size(held: bytearray) -> int:
    return int.from_bytes(held[:_LENGTH])


class KubeProxies:
    """Models of many kube-proxies, in a thread with one event loop.

    `partitioned` makes them see a lost network instead of a server that refuses connections.
    """

    def __init__(self, url: str, speed: float) -> None:
        self.partitioned = False
        self.speed = speed
        self._url = url
        self._reflectors: list[Reflector] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._sessions: list[aiohttp.ClientSession] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kube-proxies")
        self._thread.start()

    def start(self, number: int) -> None:
        """Start one, and return at once."""
        asyncio.run_coroutine_threadsafe(self._start(number), self._loop).result()

    def stop(self) -> None:
        """End all."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lists(self) -> int:
        """Return how many lists are complete."""
        return sum(each.lists for each in self._reflectors)

    def slice_version(self) -> int:
        """Return the oldest version that a reflector of EndpointSlices has."""
        return min(int(each.version or 0) for each in self._reflectors if each.is_of_slices)

    async def _start(self, number: int) -> None:
        headers = {
            "Accept": _ACCEPT,
            "Accept-Encoding": "gzip",
            "User-Agent": _USER_AGENT,
            "Authorization": f"Bearer {TOKEN}",
        }
        session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        self._sessions.append(session)
        name = node_name(number)
        for resource in watched(name):
            reflector = Reflector(session, self._url, resource, self)
            self._reflectors.append(reflector)
            self._tasks.append(self._loop.create_task(reflector.run()))
        self._tasks.append(self._loop.create_task(_report_start(session, self._url, name)))

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self._sessions:
            await session.close()


async def _report_start(session: aiohttp.ClientSession, url: str, node: str) -> None:
    event = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{node}.{random.getrandbits(64):016x}", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "type": "Normal",
        "reason": "Starting",
        "action": "StartKubeProxy",
        "regarding": {"kind": "Node", "apiVersion": "v1", "name": node, "uid": node},
        "reportingController": "kube-proxy",
        "reportingInstance": f"kube-proxy-{node}",
    }
    path = "/apis/events.k8s.io/v1/namespaces/default/events"
    async with session.post(url + path, json=event) as response:
        await response.read()
