"""The EndpointSlices that a case's short list of endpoints stands for."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import field

from pyproxy.errors import UsageError
from pyproxy.model.address import Family
from pyproxy_lab.client import JsonObject
from pyproxy_lab.conformance.cases import Applied, EndpointEntry
from pyproxy_lab.topology import Topology

MANAGER = "pyproxy-conformance"


class _Port(msgspec.Struct, frozen=True):
    """The fields that a slice's port takes from a Service's port."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    target: int | str = field(name="targetPort", default=0)


class _Spec(msgspec.Struct, frozen=True):
    ports: tuple[_Port, ...] = ()


def slices_of(applied: Applied, topology: Topology, namespace: str) -> Iterator[JsonObject]:
    """Build the slices, one for each number and family that the entries name.

    Raises UsageError where a named target port is not resolved, msgspec.ValidationError where the
    Service's ports cannot be read.
    """
    groups: dict[tuple[int, str], list[EndpointEntry]] = {}
    for item in applied.endpoints:
        entry = EndpointEntry(item) if isinstance(item, str) else item
        groups.setdefault((entry.slice, entry.family), []).append(entry)
    ports = _ports(applied)
    for (number, family), entries in groups.items():
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{applied.name}-{family.lower()}-{number}",
                "namespace": namespace,
                "labels": {
                    "kubernetes.io/service-name": applied.name,
                    "endpointslice.kubernetes.io/managed-by": MANAGER,
                },
            },
            "addressType": family,
            "ports": ports,
            "endpoints": [_endpoint(entry, topology) for entry in entries],
        }


def _ports(applied: Applied) -> list[JsonObject]:
    found = []
    for port in msgspec.convert(applied.spec, _Spec).ports:
        target = port.target or port.port
        number = applied.ports.get(target) if isinstance(target, str) else target
        if number is None:
            raise UsageError(f"{applied.name}: the target port {target!r} is missing in `ports`")
        found.append({"name": port.name, "protocol": port.protocol, "port": number})
    return found


def _endpoint(entry: EndpointEntry, topology: Topology) -> JsonObject:
    address, node = _place(entry, topology)
    endpoint: JsonObject = {"addresses": [address], "conditions": _conditions(entry)}
    if node:
        endpoint["nodeName"] = node
    if entry.zone:
        endpoint["zone"] = entry.zone
    hints = {"forZones": entry.for_zones, "forNodes": entry.for_nodes}
    given = {key: [{"name": n} for n in names] for key, names in hints.items() if names is not None}
    if given:
        endpoint["hints"] = given
    return endpoint


def _conditions(entry: EndpointEntry) -> dict[str, bool]:
    if entry.ready == "unset":
        return {}
    serving = entry.ready if entry.serving is None else entry.serving
    return {"ready": entry.ready, "serving": serving, "terminating": entry.terminating}


def _place(entry: EndpointEntry, topology: Topology) -> tuple[str, str]:
    """Return an endpoint's address and its node's name; an address of its own has no node."""
    family = Family.IPV6 if entry.family == "IPv6" else Family.IPV4
    for pod in topology.pods:
        if pod.name == entry.pod:
            return pod.addresses.of(family), topology.site(pod.site).node
    for site in topology.sites:
        if site.host == entry.pod:
            return site.addresses.of(family), site.node
    return entry.pod, ""
