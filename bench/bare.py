"""The floor of ipvs mode: the same services, servers and addresses in a bare loop over pyroute2.

It is what a plain program would do: one call after the other, each waiting for its reply. It knows
nothing of Services, compares nothing and remembers nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import IPPROTO_TCP

import msgspec
from pyproxy_lab.bench.figures import Spread
from pyproxy_lab.bench.shape import POD_PORT, PORT, Size, cluster_ip, pod_ip
from pyroute2 import IPVS, IPRoute, IPVSDest, IPVSService

_DEVICE = "bare-ipvs"
_MASQUERADE = 0


class Bare(msgspec.Struct, frozen=True):
    """Seconds for everything, the calls that it took, and seconds to write one server."""

    everything: float
    calls: int
    change: Spread


def bare_loop(size: Size, changes: int) -> Bare:
    """Measure it in this network namespace, and remove what it has written."""
    with IPVS() as tables, IPRoute() as routes, _device(routes) as device:
        began = time.perf_counter()
        calls = sum(1 for _ in _write(size, tables, routes, device))
        took = time.perf_counter() - began
        seconds = list(_changes(size, tables, changes))
        for number in range(size.services):
            tables.service("del", service=_service(number))
    return Bare(took, calls, Spread(seconds))


@contextmanager
def _device(routes: IPRoute) -> Iterator[int]:
    routes.link("add", ifname=_DEVICE, kind="dummy")
    (device,) = routes.link_lookup(ifname=_DEVICE)
    try:
        yield device
    finally:
        routes.link("del", index=device)


def _write(size: Size, tables: IPVS, routes: IPRoute, device: int) -> Iterator[None]:
    for number in range(size.services):
        tables.service("add", service=_service(number))
        yield
        for place in range(size.endpoints):
            tables.dest("add", service=_service(number), dest=_server(size, number, place))
            yield
        routes.addr("add", index=device, address=cluster_ip(number), prefixlen=32)
        yield


def _changes(size: Size, tables: IPVS, changes: int) -> Iterator[float]:
    """By turns take a server away, and add it again."""
    whose = itertools.cycle(range(size.services))
    for number in itertools.islice(whose, changes // 2):
        for command in ("del", "add"):
            began = time.perf_counter()
            tables.dest(command, service=_service(number), dest=_server(size, number, 0))
            yield time.perf_counter() - began


def _service(number: int) -> IPVSService:
    return IPVSService(addr=cluster_ip(number), port=PORT, protocol=IPPROTO_TCP, sched_name="rr")


def _server(size: Size, number: int, place: int) -> IPVSDest:
    address = pod_ip(number * size.endpoints + place)
    return IPVSDest(addr=address, port=POD_PORT, fwd_method=_MASQUERADE)
