"""Wait until an agent has programmed all objects that were written, by one that is written last.

The required result of a probe may hold from before, and then shows nothing about the last write. An
agent receives the objects of one kind in the order of their writes, and programs in one commit all
that it has received. Once it has programmed the marker's last version, it has all earlier writes.
"""

from __future__ import annotations

import time
from typing import Protocol

from pyproxy.errors import UsageError
from pyproxy.inspect.client import Client, NoAgentError
from pyproxy.inspect.queries import SERVICES, ServicesArgs
from pyproxy_lab.client import ENDPOINT_SLICES, ApiClient, JsonObject, collection
from pyproxy_lab.client import SERVICES as SERVICES_PATH
from pyproxy_lab.namespace import LabError

NAMESPACE, NAME = "barrier", "barrier"
_ADDRESS = "10.96.255.254"
_ENDPOINT = "10.244.2.254"
_PORTS = 60_000

_PAUSE = 0.01


class Marker(Protocol):
    """The objects of a barrier."""

    def next(self) -> tuple[JsonObject, ...]:
        """Return the next versions, to be written after all other Services and slices."""

    def programmed(self) -> bool:
        """Return whether the proxy has programmed them. May block. Raises PyproxyError."""


class SocketMarker:
    """A Service and its slice, whose port is the number of their writes.

    `socket` is the path of the agent's local socket.
    """

    def __init__(self, socket: str) -> None:
        self._client = Client(socket)
        self._times = 0

    def next(self) -> tuple[JsonObject, JsonObject]:
        """Return the next versions of both, to be written after all others of their kinds."""
        self._times += 1
        return _service(self._port), _slice(self._port)

    def programmed(self) -> bool:
        """Return whether the agent has programmed them; false also before it listens.

        Blocks for one question to the agent. Raises PyproxyError where it cannot respond.
        """
        try:
            found = self._client.query(SERVICES, ServicesArgs(f"{NAMESPACE}/{NAME}")).services
        except (NoAgentError, UsageError):  # it does not listen yet, or has not received it
            return False
        (port,) = found[0].ports
        programmed = {frontend.port for frontend in port.frontends}
        used = {each.address for each in port.endpoints if each.used_by}
        return programmed == {self._port} and used == {f"{_ENDPOINT}:{self._port}"}

    @property
    def _port(self) -> int:
        return 1 + self._times % _PORTS


class Alive(Protocol):
    """A program under test."""

    def require_alive(self) -> None:
        """Raise LabError if it has ended. Does not block."""


class SyncBarrier:
    """Writes a marker to an API server, and waits until an agent has programmed it."""

    def __init__(self, client: ApiClient, agent: Alive, marker: Marker) -> None:
        self._client = client
        self._agent = agent
        self._marker = marker
        client.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        for obj in marker.next():
            client.ensure(_collection(obj), obj)

    def wait(self, patience: float = 60.0) -> None:
        """Block until all earlier writes are programmed.

        Raises LabError after `patience` seconds, and where the agent has ended.
        """
        for obj in self._marker.next():
            self._client.patch(f"{_collection(obj)}/{obj['metadata']['name']}", obj)
        deadline = time.monotonic() + patience
        while not self._marker.programmed():
            self._agent.require_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the agent has not programmed the last write in {patience:.0f} s")
            time.sleep(_PAUSE)


def _collection(obj: JsonObject) -> str:
    kind = SERVICES_PATH if obj["kind"] == "Service" else ENDPOINT_SLICES
    return collection(NAMESPACE, kind)


def _service(port: int) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"clusterIP": _ADDRESS, "clusterIPs": [_ADDRESS], "ports": [{"port": port}]},
    }


def _slice(port: int) -> JsonObject:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": NAME},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [_ENDPOINT], "conditions": {"ready": True}}],
    }
