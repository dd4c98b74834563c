"""The API server's process: it counts, and obeys orders.

    python -m pyproxy_lab.bench.fleet.server SERVICES ENDPOINTS NODES SPEED

Clients reach the server through a relay. It prints the relay's URL once it holds all objects, then
writes `Counts` for each `Order` of its input, and ends when its input does. Time passes SPEED times
as fast: bookmarks, the timeouts of watches and the status of Nodes.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from pyproxy_lab.apiserver.server import ApiServer, Handler
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.bench.fleet.counts import Counts
from pyproxy_lab.bench.fleet.relay import CountingRelay
from pyproxy_lab.bench.shape import Size, endpoint_slices, service

BOOKMARK_SECONDS = 60.0
"""Seconds between the bookmarks of a kube-apiserver."""

NODE_STATUS_SECONDS = 300.0
"""Seconds between two writes of the status of a Node without changes, as kubelets make them.

Facts: nodeStatusReportFrequency of the kubelet. Its heartbeat is a Lease, which no proxy watches.
"""

TOKEN = "t" * 1100
"""As long as the token of a service account."""

_ADMIN = "admin"
_HISTORY = 200_000


class Steady(msgspec.Struct, frozen=True):
    """A time without changes but the status of Nodes; `seconds` is of the fleet's clock."""

    seconds: float


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """Steps in this order: cut, put, forget, open, wait. All are optional.

    `forget` forgets the history, so that watches from earlier versions are 410.
    """

    cut: bool = False
    put: Sequence[dict[str, Any]] = ()
    forget: bool = False
    open: bool = False
    steady: Steady | None = None


class FleetServer:
    """A server behind a relay."""

    def __init__(
        self,
        server: ApiServer,
        relay: CountingRelay,
        requests: Counter[str],
        nodes: int,
        speed: float,
    ) -> None:
        self._requests = requests
        self._server = server
        self._relay = relay
        self._nodes = nodes
        self._speed = speed

    def obey(self, order: Order) -> Counts:
        """Take the steps of an order, and return the counts after it."""
        if order.cut:
            self._relay.cut()
        if order.put:
            self._server.load(order.put)
        if order.forget:
            self._server.expire_watches()
        if order.open:
            self._relay.open()
        if order.steady:
            self._steady(order.steady.seconds)
        return self._counts()

    def _counts(self) -> Counts:
        received, sent, connections = self._relay.counts()
        server = self._server

        def in_thread() -> tuple[dict[str, int], dict[str, int], int, int]:
            encodings = {
                f"{media_type} {cause.value}": number
                for (media_type, cause), number in server.encodings.counts.items()
            }
            return (
                dict(self._requests),
                encodings,
                server.registry.store.revision,
                server.watch_count,
            )

        return Counts(received, sent, connections, *server.call(in_thread))

    def _steady(self, seconds: float) -> None:
        """Write the status of each Node at its turn."""
        began = time.monotonic()
        writes = int(seconds / NODE_STATUS_SECONDS * self._nodes)
        for number in range(writes):
            due = began + (number + 0.5) * seconds / self._speed / writes
            time.sleep(max(0.0, due - time.monotonic()))
            self._server.load([node(number % self._nodes)])
        time.sleep(max(0.0, began + seconds / self._speed - time.monotonic()))


def node_name(number: int) -> str:
    """Name a Node of the fleet."""
    return f"node-{number}"


def node(number: int) -> dict[str, Any]:
    """Write a Node, smaller than a kubelet's: without conditions and images."""
    address = f"172.{16 + number // 65536}.{number // 256 % 256}.{number % 256}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node_name(number), "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def objects(size: Size, nodes: int) -> Iterator[dict[str, Any]]:
    """Write every object of the cluster."""
    yield from map(node, range(nodes))
    for number in range(size.services):
        yield service(number)
        yield from endpoint_slices(number, size.endpoints)


def main() -> None:
    """Be the process."""
    services, endpoints, nodes = map(int, sys.argv[1:4])
    speed = float(sys.argv[4])
    settings = Settings(
        token=_ADMIN,
        proxy_token=TOKEN,
        history=_HISTORY,
        bookmark_interval=BOOKMARK_SECONDS / speed,
        speed=speed,
    )
    requests: Counter[str] = Counter()
    with ApiServer.running(settings, [_counter(requests)]) as server:
        server.load(objects(Size(services, endpoints), nodes))
        server.encode_all()
        port = urlsplit(server.url).port or 0
        with CountingRelay.running(port) as relay:
            fleet = FleetServer(server, relay, requests, nodes, speed)
            print(f"http://127.0.0.1:{relay.port}", flush=True)
            for line in sys.stdin.buffer:
                done = fleet.obey(msgspec.json.decode(line, type=Order))
                sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
                sys.stdout.buffer.flush()


def _counter(requests: Counter[str]) -> Middleware:
    """Return a middleware that counts requests by kind and resource."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        query = request.query
        kind = "create" if request.method == "POST" else "list"
        if query.get("watch"):
            kind = "stream" if query.get("sendInitialEvents") == "true" else "watch"
        requests[f"{kind} {request.path.rpartition('/')[2]}"] += 1
        return await handler(request)

    return count


if __name__ == "__main__":
    main()
