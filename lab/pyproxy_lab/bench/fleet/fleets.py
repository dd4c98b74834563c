"""A fleet of either kind of client, and when it has followed a change."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

from pyproxy_lab.bench.fleet.agents import FleetAgent
from pyproxy_lab.bench.fleet.kube_proxy import KubeProxies
from pyproxy_lab.bench.fleet.server import TOKEN
from pyproxy_lab.cluster import kubeconfig
from pyproxy_lab.namespace import LabError

_POLL = 0.02


class Client(StrEnum):
    """The clients that are compared; the first is what the others are beside."""

    PYPROXY = "pyproxy"
    PYPROXY_JSON = "pyproxy, JSON"
    KUBE_PROXY = "kube-proxy (model)"


ACCEPT = {
    Client.PYPROXY: "application/vnd.kubernetes.protobuf,application/json",
    Client.PYPROXY_JSON: "application/json",
}


class Mark(msgspec.Struct, frozen=True):
    """A version of a slice: its first address, and the server's version."""

    name: str
    address: str
    revision: int


class Fleet(ABC):
    """Many clients. Methods block for `patience` seconds at most, and raise LabError then."""

    @abstractmethod
    def start(self, number: int) -> None:
        """Start the client of a node; return at once."""

    @abstractmethod
    def await_lists(self, number: int) -> None:
        """Wait until so many lists are complete, of all clients and kinds together."""

    @abstractmethod
    def await_slice(self, mark: Mark) -> None:
        """Wait until each client knows a version of a slice."""

    @abstractmethod
    def partition(self, is_cut: bool) -> None:
        """Note that the connections are lost in the network, not ended by the server."""

    @abstractmethod
    def stop(self) -> None:
        """End all clients."""


class _Agents(Fleet):
    def __init__(self, url: str, folder: Path, speed: float, accept: str, patience: float) -> None:
        self._kubeconfig = folder / "kubeconfig"
        self._kubeconfig.write_bytes(msgspec.json.encode(kubeconfig(url, TOKEN)))
        self._speed, self._accept, self._patience = speed, accept, patience
        self._agents: list[FleetAgent] = []

    def start(self, number: int) -> None:
        agent = FleetAgent(self._kubeconfig, number, self._speed, self._accept)
        self._agents.append(agent)
        agent.start()

    def await_lists(self, number: int) -> None:
        _until(lambda: sum(each.lists for each in self._agents) >= number, self._patience)

    def await_slice(self, mark: Mark) -> None:
        deadline = time.monotonic() + self._patience
        for number, agent in enumerate(self._agents):
            left = max(0.0, deadline - time.monotonic())
            if not agent.await_slice(mark.name, mark.address, left):
                raise LabError(f"agent {number} is not in step after {self._patience:.0f} s")

    def partition(self, is_cut: bool) -> None:
        pass  # the same to these clients as a server that refuses connections

    def stop(self) -> None:
        for agent in self._agents:
            agent.stop()


class _KubeProxies(Fleet):
    def __init__(self, url: str, speed: float, patience: float) -> None:
        self._proxies, self._patience = KubeProxies(url, speed), patience

    def start(self, number: int) -> None:
        self._proxies.start(number)

    def await_lists(self, number: int) -> None:
        _until(lambda: self._proxies.lists() >= number, self._patience)

    def await_slice(self, mark: Mark) -> None:
        _until(lambda: self._proxies.slice_version() >= mark.revision, self._patience)

    def partition(self, is_cut: bool) -> None:
        self._proxies.partitioned = is_cut

    def stop(self) -> None:
        self._proxies.stop()


def _until(condition: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"a client is not in step after {patience:.0f} s")
        time.sleep(_POLL)


@contextmanager
def running(
    client: Client, url: str, folder: Path, speed: float, patience: float
) -> Iterator[Fleet]:
    """Make an empty fleet, whose clients end with the block."""
    fleet: Fleet
    if client in ACCEPT:
        fleet = _Agents(url, folder, speed, ACCEPT[client], patience)
    else:
        fleet = _KubeProxies(url, speed, patience)
    try:
        yield fleet
    finally:
        fleet.stop()
