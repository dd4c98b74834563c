"""Knowing that an agent has programmed all that was written: a Service that is written last.

What a probe wants may hold from before, and then says nothing of what has just been written. An
agent hears the objects of one kind in the order of their writing, and programs what it has heard
together. So once it has the marker as it was written last, it has all that came before.
"""

from __future__ import annotations

import time

from pyproxy.errors import UsageError
from pyproxy.inspect.client import Client, NoAgentError
from pyproxy.inspect.queries import SERVICES, ServicesArgs
from pyproxy_lab.client import ENDPOINT_SLICES, ApiClient, JsonObject, collection
from pyproxy_lab.client import SERVICES as SERVICES_PATH
from pyproxy_lab.namespace import LabError
from pyproxy_lab.process import Agent

NAMESPACE, NAME = "barrier", "barrier"
_ADDRESS = "10.96.255.254"
_ENDPOINT = "10.244.2.254"
_PORTS = 60_000

_PAUSE = 0.01


class Marker:
    """The Service and its slice, whose port says how often they were written.

    `socket` is the path of the agent's local socket.
    """

    def __init__(self, socket: str) -> None:
        self._client = Client(socket)
        self._times = 0

    def next(self) -> tuple[JsonObject, JsonObject]:
        """Give the Service and the slice to be written now, after all others of their kinds."""
        self._times += 1
        return _service(self._port), _slice(self._port)

    def programmed(self) -> bool:
        """Tell whether the agent has programmed them; false too where it does not answer yet.

        Raises PyproxyError where it never will.
        """
        try:
            found = self._client.query(SERVICES, ServicesArgs(f"{NAMESPACE}/{NAME}")).services
        except (NoAgentError, UsageError):  # it does not listen yet, or has not heard of it
            return False
        (port,) = found[0].ports
        programmed = {frontend.port for frontend in port.frontends}
        used = {each.address for each in port.endpoints if each.used_by}
        return programmed == {self._port} and used == {f"{_ENDPOINT}:{self._port}"}

    @property
    def _port(self) -> int:
        return 1 + self._times % _PORTS


class SyncBarrier:
    """Writes a marker to an API server, and waits for an agent, which `socket` is of."""

    def __init__(self, client: ApiClient, agent: Agent, socket: str) -> None:
        self._client = client
        self._agent = agent
        self._marker = Marker(socket)
        self._paths = [
            f"{collection(NAMESPACE, kind)}/{NAME}" for kind in (SERVICES_PATH, ENDPOINT_SLICES)
        ]
        client.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        for path, obj in zip(self._paths, self._marker.next(), strict=True):
            client.ensure(path.rpartition("/")[0], obj)

    def wait(self, patience: float = 60.0) -> None:
        """Return once all is programmed that was written before.

        Raises LabError after so many seconds, and where the agent has ended.
        """
        for path, obj in zip(self._paths, self._marker.next(), strict=True):
            self._client.patch(path, obj)
        deadline = time.monotonic() + patience
        while not self._marker.programmed():
            self._agent.require_alive()
            if time.monotonic() > deadline:
                raise LabError(f"what was written {patience:.0f} s ago is not programmed yet")
            time.sleep(_PAUSE)


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
