"""The API server's process of the hostile part: changes to time, and an attack beside them.

    python -m bench.hostile_server SERVICES ENDPOINTS

It prints its URL once it holds all objects, then writes a `Written` for each line of its input, an
`Order`, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import islice
from typing import Any

import msgspec
from aiohttp import web
from pyproxy_lab.apiserver.registry import Deletion
from pyproxy_lab.apiserver.resources import ENDPOINT_SLICES, SERVICES
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.apiserver.status import ApiError
from pyproxy_lab.bench import orders
from pyproxy_lab.bench.orders import OrderedServer
from pyproxy_lab.bench.shape import Size, endpoint_slice, objects, service

from bench.hostile_objects import ATTACKS, NAMESPACE, Object, ObjectAttack

VICTIMS = 60
"""Services with one endpoint each, whose endpoint is replaced in turn."""

ENDLESS, BOMB = "endless-watch", "gzip-bomb"
"""Attacks by the API server itself, on the Node, which no other change depends on."""

_RESOURCES = {"Service": SERVICES, "EndpointSlice": ENDPOINT_SLICES}
_HISTORY = 200_000
_PIECE = 1 << 16
_BOMB_SIZE = 3 << 29
_PAUSE = 0.001
_MADE_PER_SECOND = 500
"""The objects that an attack makes at first: more at once would delay this server's watches."""

_LINGER = 0.3
"""Seconds until an attack's objects are deleted, which the last change must not wait for."""

_MOST_EDITED = 200
"""The most objects that an attack edits without having made them at first."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Order(msgspec.Struct, frozen=True):
    """Replace the victims' endpoints by `pods`, from `begin` on, `rate` a second.

    `attack` names what happens meanwhile. `victims` is the number of the first victim.
    """

    begin: float
    rate: float
    pods: Sequence[int]
    victims: int
    attack: str = ""


class Written(msgspec.Struct, frozen=True):
    """When each pod was written, on the clock that all processes share, and the attack's edits."""

    at: Sequence[float]
    edits: int


Server = OrderedServer[Written]
"""The other end of the process's input and output."""


def running(size: Size) -> AbstractContextManager[Server]:
    """Run the process. Raises LabError where it does not start."""
    return orders.running(__name__, size, Written)


class NodeAttacks:
    """aiohttp's middleware that answers requests for Nodes with what is unbounded."""

    def __init__(self) -> None:
        self._now = ""
        self._watches: set[asyncio.Task[web.StreamResponse]] = set()

    async def start(self, name: str) -> None:
        """Cut the present watches of Nodes, and attack the next requests; empty ends it."""
        self._now = name
        for task in tuple(self._watches):
            task.cancel()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Respond in the server's place during an attack."""
        if not request.path.endswith("/nodes"):
            return await handler(request)
        if self._now == BOMB:
            return await self._bomb(request)
        if self._now == ENDLESS and "watch" in request.query:
            return await self._endless(request)
        task = asyncio.ensure_future(handler(request))
        self._watches.add(task)
        try:
            return await task
        finally:
            self._watches.discard(task)

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"type":"ADDED","object":{"kind":"Node","metadata":{"name":"')
        while self._now == ENDLESS:
            await response.write(b"x" * _PIECE)
            await asyncio.sleep(_PAUSE)
        return response

    async def _bomb(self, request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        await response.write(packer.compress(b'{"kind":"NodeList","items":['))
        blanks = b" " * (1 << 20)
        for _ in range(_BOMB_SIZE >> 20):
            await response.write(packer.compress(blanks))
            await asyncio.sleep(_PAUSE)
        await response.write(packer.flush())
        return response


def main() -> None:
    """Be the process."""
    size = Size(*map(int, sys.argv[1:]))
    nodes = NodeAttacks()
    with ApiServer.running(Settings(history=_HISTORY), [nodes.middleware]) as server:
        server.load(objects(size))
        for number in range(size.services, size.services + VICTIMS):
            server.load([service(number), endpoint_slice(number, [number])])
        orders.stop_collecting()
        print(server.url, flush=True)
        for line in sys.stdin.buffer:
            written = _obey(server, nodes, msgspec.json.decode(line, type=Order))
            sys.stdout.buffer.write(msgspec.json.encode(written) + b"\n")
            sys.stdout.buffer.flush()


def _obey(server: ApiServer, nodes: NodeAttacks, order: Order) -> Written:
    attack = ATTACKS.get(order.attack)
    end = threading.Event()
    edits: list[int] = [0]
    thread = None
    if attack is not None:
        thread = threading.Thread(target=partial(_attack, server, attack, end, edits))
        thread.start()
    elif order.attack in (ENDLESS, BOMB):
        server.call(lambda: asyncio.ensure_future(nodes.start(order.attack)))
    try:
        at = _write(server, order)
    finally:
        end.set()
    if attack is not None and thread is not None:
        thread.join()
        time.sleep(_LINGER)
        _delete(server, attack)
    server.call(lambda: asyncio.ensure_future(nodes.start("")))
    return Written(at, edits[-1])


def _write(server: ApiServer, order: Order) -> list[float]:
    written = []
    for number, pod in enumerate(order.pods):
        obj = endpoint_slice(order.victims + number % VICTIMS, [pod])
        time.sleep(max(0.0, order.begin + number / order.rate - time.monotonic()))

        def write(obj: Object = obj) -> float:
            began = time.monotonic()
            server.registry.load([obj])
            return began

        written.append(server.call(write))
    return written


def _attack(
    server: ApiServer, attack: ObjectAttack, end: threading.Event, edits: list[int]
) -> None:
    """Make the objects and edit them until `end`; `edits` then ends in their number."""
    began = time.monotonic()
    for number, obj in enumerate(attack.made()):
        if end.wait(max(0.0, began + number / _MADE_PER_SECOND - time.monotonic())):
            break
        _put(server, obj)
    began, done = time.monotonic(), 0
    for obj in attack.edits():
        if end.wait(max(0.0, began + done / attack.rate - time.monotonic())):
            break
        _put(server, obj)
        done += 1
    edits.append(done)


def _put(server: ApiServer, obj: Object) -> None:
    def write() -> None:
        resource = _RESOURCES[obj["kind"]]
        meta = obj["metadata"]
        store = server.registry.store
        found = store.table(resource).get(f"/{meta['namespace']}/{meta['name']}")
        if found is None:
            server.registry.load([obj])
            return
        # The attack must cost the server little: this neither copies nor checks the object.
        new: dict[str, Any] = {**obj, "metadata": {**meta, "uid": found.uid}}
        store.write(resource, new)

    server.call(write)


def _delete(server: ApiServer, attack: ObjectAttack) -> None:
    written = {(obj["kind"], obj["metadata"]["name"]) for obj in attack.made()}
    edited = islice(attack.edits(), _MOST_EDITED)
    written.update((obj["kind"], obj["metadata"]["name"]) for obj in edited)

    def delete() -> None:
        for kind, name in written:
            resource = _RESOURCES[kind]
            with suppress(ApiError):
                found = server.registry.find(resource, NAMESPACE, name)
                server.registry.delete(resource, found, Deletion())

    server.call(delete)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
