"""A marker for the sync barrier that shows in packets, for proxies that cannot be asked.

Its Service gets another port with each write, and its EndpointSlices have the same port name. The
new port serves only when the proxy has both. A proxy may program each family at a time of its own,
so the marker has both families.
"""

from __future__ import annotations

import contextlib
import socket
from functools import partial

from pyproxy.model.address import Family
from pyproxy_lab.client import JsonObject
from pyproxy_lab.namespace import HAS_IPV6
from pyproxy_lab.network import Network
from pyproxy_lab.sync_barrier import NAME, NAMESPACE

_ADDRESSES = {Family.IPV4: "10.96.255.254", Family.IPV6: "fd00:10:96::fffe"}
_POD = "b1"
_PORTS = 60_000
_TIMEOUT = 0.2


class PacketMarker:
    """The marker's Service and slices. A site's connections to it show what is programmed."""

    def __init__(self, network: Network, site: str) -> None:
        self._node = network.namespace(site)
        self._families = (Family.IPV4, Family.IPV6) if HAS_IPV6 else (Family.IPV4,)
        (pod,) = (each for each in network.topology.pods if each.name == _POD)
        self._endpoints = {family: pod.addresses.of(family) for family in self._families}
        self._target = pod.ports[0]
        self._times = 0

    def next(self) -> tuple[JsonObject, ...]:
        """Return the next versions, to be written after all other Services and slices."""
        self._times += 1
        return (self._service(), *map(self._slice, self._families))

    def programmed(self) -> bool:
        """Return whether the proxy has programmed them; blocks for a connection per family."""
        return all(
            self._node.call(partial(_connects, _ADDRESSES[family], self._port))
            for family in self._families
        )

    @property
    def _port(self) -> int:
        return 1 + self._times % _PORTS

    def _service(self) -> JsonObject:
        addresses = [_ADDRESSES[family] for family in self._families]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "clusterIP": addresses[0],
                "clusterIPs": addresses,
                "ipFamilies": [f"IPv{family.value}" for family in self._families],
                "ipFamilyPolicy": "PreferDualStack",
                "ports": [{"name": self._name, "port": self._port, "targetPort": self._target}],
            },
        }

    def _slice(self, family: Family) -> JsonObject:
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{NAME}-{family.value}",
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": NAME},
            },
            "addressType": f"IPv{family.value}",
            "ports": [{"name": self._name, "port": self._target, "protocol": "TCP"}],
            "endpoints": [{"addresses": [self._endpoints[family]], "conditions": {"ready": True}}],
        }

    @property
    def _name(self) -> str:
        return f"p{self._port}"


def _connects(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), _TIMEOUT):
        return True
    return False
