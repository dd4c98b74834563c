"""The API server's process, and its commands for changing objects.

    python -m pyproxy_lab.bench.cluster SERVICES ENDPOINTS

It prints its URL once it holds all objects, then writes a `Done` for each line of its input, an
`Order`, and ends when its input does. It makes changes itself, not by requests. Their cost is then
the same for all agents: an agent's own work and the sending of the watch event.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import msgspec

from pyproxy_lab.apiserver.registry import Deletion
from pyproxy_lab.apiserver.resources import ENDPOINT_SLICES, SERVICES
from pyproxy_lab.apiserver.server import ApiServer
from pyproxy_lab.apiserver.settings import Settings
from pyproxy_lab.bench import orders
from pyproxy_lab.bench.orders import OrderedServer
from pyproxy_lab.bench.shape import FRESH_POD, NAMESPACE, Size, endpoint_slice, objects, pod_ip

_BY_KIND = {resource.kind: resource for resource in (SERVICES, ENDPOINT_SLICES)}
_HISTORY = 200_000
_TICK = 0.01
_CATCH_UP = 2
"""How much faster than its rate a churn makes up for a delay."""

_LONG_COLLECTION = 0.001


class Churn(msgspec.Struct, frozen=True):
    """So many changes a second for so many seconds, each a pod that is new and replaces one.

    Pods are numbered from `first`, and Services take their turns.
    """

    rate: float
    seconds: float
    size: Size
    first: int


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """Objects to write, (kind, name) of those to delete, and a churn; in this order."""

    put: Sequence[dict[str, Any]] = ()
    delete: Sequence[tuple[str, str]] = ()
    churn: Churn | None = None


class Done(msgspec.Struct, frozen=True):
    """When it began, on the clock that all processes share, and each churned pod's time.

    `collections` are the seconds of each garbage collection of this process in the churn that took
    a millisecond or more.
    """

    at: float
    pods: dict[str, float] = {}
    collections: list[float] = []


Cluster = OrderedServer[Done]
"""The other end of the process's input and output."""


def running(size: Size) -> AbstractContextManager[Cluster]:
    """Run the process. Raises LabError where it does not start."""
    return orders.running(__name__, size, Done)


def main() -> None:
    """Be the process."""
    services, endpoints = map(int, sys.argv[1:])
    with ApiServer.running(Settings(history=_HISTORY)) as server:
        server.load(objects(Size(services, endpoints)))
        server.encode_all()
        orders.stop_collecting()
        print(server.url, flush=True)
        for line in sys.stdin.buffer:
            done = _obey(server, msgspec.json.decode(line, type=Order))
            sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
            sys.stdout.buffer.flush()


def _obey(server: ApiServer, order: Order) -> Done:
    def change() -> float:
        began = time.monotonic()
        server.registry.load(order.put)
        for kind, name in order.delete:
            resource = _BY_KIND[kind]
            found = server.registry.find(resource, NAMESPACE, name)
            server.registry.delete(resource, found, Deletion())
        return began

    began = server.call(change)
    if order.churn is None:
        return Done(began)
    with _collections() as collections:
        pods = _churn(server, order.churn)
    return Done(began, pods, collections)


@contextmanager
def _collections() -> Iterator[list[float]]:
    """Yield a list that garbage collections of a millisecond or more are added to, in seconds."""
    found: list[float] = []
    began = 0.0

    def note(phase: str, _: object) -> None:
        nonlocal began
        now = time.monotonic()
        if phase == "start":
            began = now
        elif now - began >= _LONG_COLLECTION:
            found.append(now - began)

    gc.callbacks.append(note)
    try:
        yield found
    finally:
        gc.callbacks.remove(note)


def _churn(server: ApiServer, churn: Churn) -> dict[str, float]:
    written: dict[str, float] = {}

    def write(count: int) -> None:
        for _ in range(count):
            pod = churn.first + len(written)
            service = len(written) % churn.size.services
            first = service * churn.size.endpoints
            pods = [*range(first, first + churn.size.endpoints - 1), pod]
            written[pod_ip(pod)] = time.monotonic()
            server.registry.load([endpoint_slice(service, pods)])

    began = time.monotonic()
    # After a delay of this process, all that is due at once would be a burst and not this rate.
    most = max(1, round(_CATCH_UP * churn.rate * _TICK))
    while (passed := time.monotonic() - began) < churn.seconds:
        due = round(passed * churn.rate) - len(written)
        if due > 0:
            server.call(partial(write, min(due, most)))
        time.sleep(_TICK)
    return written


def fresh_pods(numbers: Iterator[int], count: int) -> list[int]:
    """Return the numbers of pods that were not used before."""
    return [FRESH_POD + next(numbers) for _ in range(count)]


if __name__ == "__main__":
    main()
