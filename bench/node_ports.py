"""Many node ports on many addresses of the node, beside another program if one is given."""

from __future__ import annotations

import contextlib
import itertools
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from pyproxy_lab.bench import cluster, usage
from pyproxy_lab.bench.cluster import Cluster, Order
from pyproxy_lab.bench.contestant import Contestant, parse
from pyproxy_lab.bench.place import Place
from pyproxy_lab.bench.shape import Size, endpoint_slice, service
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.modes import LabMode
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.process import Agent

SHAPES = ((200, 300), (500, 500))
"""Addresses of the node, and Services with one node port each."""

_FIRST_PORT = 30_000
_FLAGS = ("--nodeport-addresses=0.0.0.0/0",)
_PATIENCE = 120.0
_PAUSE = 0.002
_ROUNDS = 3


class Figures(msgspec.Struct):
    """Seconds of a start, of each address and of each Service; peak memory in MiB."""

    start: float
    addresses: list[float]
    services: list[float]
    memory: float

    def __str__(self) -> str:
        address, made = (min(each) for each in (self.addresses, self.services))
        return (
            f"start {self.start:.2f} s, one address more {address:.3f} s, "
            f"one Service more {made:.3f} s, peak memory {self.memory:.0f} MiB"
        )


def print_node_ports(
    place: Place, mode: LabMode, kube_proxy: str, shapes: Sequence[tuple[int, int]] = SHAPES
) -> None:
    """Measure and print each shape."""
    agents = [parse("pyproxy", mode)]
    if kube_proxy:
        agents.append(parse(f"kube-proxy={kube_proxy}", mode))
    for addresses, services in shapes:
        print(f"{addresses} addresses x {services} node ports, {mode.name} mode", flush=True)
        for agent in agents:
            with _addresses(place.node, addresses) as spare, _api(services) as api:
                found = _measure(agent, place.node, api, services, spare)
            print(f"  {agent.name}: {found}", flush=True)


def _measure(
    contestant: Contestant, node: Namespace, api: Cluster, services: int, spare: Iterator[str]
) -> Figures:
    contestant = Contestant(contestant.name, (*contestant.command, *_FLAGS))
    with tempfile.TemporaryDirectory(prefix="pyproxy-bench-") as folder:
        path = Path(folder) / "kubeconfig"
        path.write_bytes(msgspec.json.encode(kubeconfig(api.url, "")))
        began = time.monotonic()
        with contestant.serving(node, path, Path(folder) / "log") as agent:
            last = _FIRST_PORT + services - 1
            found = Figures(_until_served(agent, _address(0), last) - began, [], [], 0)
            # Both wait for a second or two after a start, for other events.
            for number in range(services, services + _ROUNDS):
                time.sleep(3)
                at = api.order(Order(put=_objects(number))).at
                port = _FIRST_PORT + number
                found.services.append(_until_served(agent, _address(0), port) - at)
            for address in itertools.islice(spare, _ROUNDS):
                time.sleep(3)
                began = time.monotonic()
                node.ip([f"addr add {address}/32 dev pods"])
                found.addresses.append(_until_served(agent, address, last) - began)
            found.memory = usage.memory(agent.pid, "VmHWM") / (1 << 20)
    return found


def _until_served(agent: Agent, address: str, port: int) -> float:
    """Return the time of the first response of a node port, on the monotonic clock."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1) as found:
            if found.recv(64):
                return time.monotonic()
        agent.require_alive()
        time.sleep(_PAUSE)
    return float("inf")


@contextlib.contextmanager
def _addresses(node: Namespace, count: int) -> Iterator[Iterator[str]]:
    """Add addresses to the node, and yield some more that it does not have."""
    node.ip([f"addr add {_address(number)}/32 dev pods" for number in range(count)])
    try:
        yield map(_address, itertools.count(count))
    finally:
        node.ip([f"addr del {_address(number)}/32 dev pods" for number in range(count)])
        for number in range(count, count + _ROUNDS):
            with contextlib.suppress(Exception):
                node.ip([f"addr del {_address(number)}/32 dev pods"])


def _address(number: int) -> str:
    return f"172.31.{number >> 8}.{number & 255}"


@contextlib.contextmanager
def _api(services: int) -> Iterator[Cluster]:
    with cluster.running(Size(1, 1)) as api:
        api.order(Order(put=[each for number in range(services) for each in _objects(number)]))
        yield api


def _objects(number: int) -> list[dict[str, Any]]:
    made = service(number)
    made["spec"]["type"] = "NodePort"
    made["spec"]["ports"][0]["nodePort"] = _FIRST_PORT + number
    return [made, endpoint_slice(number, [number * 2, number * 2 + 1])]
