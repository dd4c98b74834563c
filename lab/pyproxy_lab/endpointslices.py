"""Which EndpointSlices a Service should have, worked out from its pods. Nothing here does I/O.

Facts: the EndpointSlice controller of Kubernetes v1.36.
"""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

Object = dict[str, Any]

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "endpointslice-controller.k8s.io"
SERVICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
ZONE = "topology.kubernetes.io/zone"

_MOST_ENDPOINTS = 100
_ENDED = {"Failed", "Succeeded"}


class SlicePort(msgspec.Struct, frozen=True):
    """A port of a slice, named as the Service names it."""

    name: str
    port: int
    protocol: str
    app_protocol: str = ""

    def shown(self) -> Object:
        """Return the port as the API has it."""
        shown: Object = {"name": self.name, "protocol": self.protocol, "port": self.port}
        if self.app_protocol:
            shown["appProtocol"] = self.app_protocol
        return shown


class Group(msgspec.Struct, frozen=True):
    """The properties that all endpoints of one slice share."""

    family: str
    ports: tuple[SlicePort, ...]


class Plan(msgspec.Struct, frozen=True):
    """The writes that give a Service its desired slices."""

    create: tuple[Object, ...] = ()
    update: tuple[Object, ...] = ()
    delete: tuple[Object, ...] = ()


def plan(
    service: Object,
    pods: Iterable[Object],
    zones: Mapping[str, str],
    existing: Iterable[Object],
    triggered: str,
) -> Plan:
    """Compare the slices that a Service should have with those that it has.

    `pods` are those that its selector matches, `zones` the nodes' zones by name, `existing` the
    slices made for it before. Endpoints stay in the slice that they are in. `triggered` is the
    time of the change that led here, as an RFC 3339 text.
    """
    wanted = _wanted(service, pods, zones)
    create: list[Object] = []
    update: list[Object] = []
    delete: list[Object] = []
    by_group: dict[Group, list[Object]] = {}
    for found in existing:
        group = _group_of(found)
        if group in wanted:
            by_group.setdefault(group, []).append(found)
        else:
            delete.append(found)
    for group, endpoints in wanted.items():
        left = {_identity(endpoint): endpoint for endpoint in endpoints}
        kept = [_take(left, found) for found in by_group.get(group, ())]
        rest = list(left.values())
        for number, (found, stayed) in enumerate(zip(by_group.get(group, ()), kept, strict=True)):
            room = _MOST_ENDPOINTS - len(stayed)
            members, rest = stayed + rest[:room], rest[room:]
            if not members and (endpoints or number):
                delete.append(found)
                continue
            new = _slice(service, group, members, triggered, found)
            if _content(new) != _content(found):
                update.append(new)
        must_exist = not by_group.get(group)
        while rest or must_exist:
            create.append(_slice(service, group, rest[:_MOST_ENDPOINTS], triggered, None))
            rest = rest[_MOST_ENDPOINTS:]
            must_exist = False
    # A slice that is no longer needed becomes one that is: fewer objects come and go.
    for found in list(delete):
        same_family = [new for new in create if new["addressType"] == found["addressType"]]
        if same_family:
            create.remove(same_family[0])
            delete.remove(found)
            update.append(_in_place_of(found, same_family[0]))
    return Plan(tuple(create), tuple(update), tuple(delete))


def selects(service: Object, labels: Mapping[str, str]) -> bool:
    """Return whether a Service's selector matches a pod's labels; an empty one matches nothing."""
    selector = service["spec"].get("selector")
    if not selector or service["spec"].get("type") == "ExternalName":
        return False
    return all(labels.get(key) == value for key, value in selector.items())


def _wanted(
    service: Object, pods: Iterable[Object], zones: Mapping[str, str]
) -> dict[Group, list[Object]]:
    families = service["spec"].get("ipFamilies") or ["IPv4"]
    wanted: dict[Group, list[Object]] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        status = pod.get("status", {})
        if status.get("phase") in _ENDED:
            continue
        ports = tuple(_ports(service, pod))
        for family in families:
            addresses = [a for a in _addresses(status) if _family(a) == family]
            if addresses:
                endpoint = _endpoint(service, pod, addresses[:1], zones)
                wanted.setdefault(Group(family, ports), []).append(endpoint)
    for family in families:
        if not any(group.family == family for group in wanted):
            # A Service without endpoints has one empty slice of each family.
            wanted[Group(family, ())] = []
    return wanted


def _ports(service: Object, pod: Object) -> Iterator[SlicePort]:
    for port in service["spec"].get("ports") or ():
        protocol = port.get("protocol", "TCP")
        target = port.get("targetPort", port["port"])
        number = _named_port(pod, target, protocol) if isinstance(target, str) else target
        if number:
            yield SlicePort(port.get("name", ""), number, protocol, port.get("appProtocol", ""))


def _named_port(pod: Object, name: str, protocol: str) -> int:
    spec = pod["spec"]
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    for container in (*(spec.get("containers") or ()), *sidecars):
        for port in container.get("ports") or ():
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return 0


def _endpoint(
    service: Object, pod: Object, addresses: list[str], zones: Mapping[str, str]
) -> Object:
    meta, spec = pod["metadata"], pod["spec"]
    serving = any(
        c.get("type") == "Ready" and c.get("status") == "True"
        for c in pod["status"].get("conditions") or ()
    )
    terminating = bool(meta.get("deletionTimestamp"))
    published = bool(service["spec"].get("publishNotReadyAddresses"))
    ready = published or (serving and not terminating)
    endpoint: Object = {
        "addresses": addresses,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {
            "kind": "Pod",
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        },
    }
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        endpoint["hostname"] = spec["hostname"]
    if node := spec.get("nodeName"):
        endpoint["nodeName"] = node
        if zone := zones.get(node):
            endpoint["zone"] = zone
    if ready and (hints := _hints(service["spec"].get("trafficDistribution", ""), endpoint)):
        endpoint["hints"] = hints
    return endpoint


def _hints(distribution: str, endpoint: Object) -> Object:
    hints: Object = {}
    if distribution and "zone" in endpoint:
        hints["forZones"] = [{"name": endpoint["zone"]}]
    if distribution == "PreferSameNode" and "nodeName" in endpoint:
        hints["forNodes"] = [{"name": endpoint["nodeName"]}]
    return hints


def _slice(
    service: Object, group: Group, endpoints: list[Object], triggered: str, found: Object | None
) -> Object:
    meta = service["metadata"]
    name = meta["name"]
    labels = {**(meta.get("labels") or {}), SERVICE_NAME: name, MANAGED_BY: CONTROLLER}
    labels.pop(HEADLESS, None)
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS] = ""
    owner = {
        "apiVersion": "v1",
        "kind": "Service",
        "name": name,
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    own: Object = {
        "name": f"{name}-{uuid.uuid4().hex[:5]}",
        "namespace": meta["namespace"],
        "labels": labels,
        "annotations": {TRIGGER_TIME: triggered},
        "ownerReferences": [owner],
    }
    new = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": own,
        "addressType": group.family,
        "endpoints": endpoints,
        "ports": [port.shown() for port in group.ports],
    }
    return new if found is None else _in_place_of(found, new)


def _in_place_of(found: Object, new: Object) -> Object:
    """Return a new slice the name and version of one that exists."""
    kept = {key: found["metadata"][key] for key in ("name", "resourceVersion")}
    return {**new, "metadata": {**new["metadata"], **kept}}


def _take(left: dict[tuple[str, str], Object], found: Object) -> list[Object]:
    """Take, from the endpoints that are left to place, those that a slice has already."""
    identities = (_identity(endpoint) for endpoint in found.get("endpoints") or ())
    return [left.pop(identity) for identity in identities if identity in left]


def _identity(endpoint: Object) -> tuple[str, str]:
    return endpoint["addresses"][0], (endpoint.get("targetRef") or {}).get("uid", "")


def _group_of(found: Object) -> Group:
    ports = (
        SlicePort(
            port.get("name", ""), port.get("port", 0), port["protocol"], port.get("appProtocol", "")
        )
        for port in found.get("ports") or ()
    )
    return Group(found["addressType"], tuple(ports))


def _content(found: Object) -> tuple[object, object]:
    return found["metadata"].get("labels"), found.get("endpoints") or []


def _addresses(status: Object) -> list[str]:
    found = [entry["ip"] for entry in status.get("podIPs") or () if entry.get("ip")]
    return found or ([status["podIP"]] if status.get("podIP") else [])


def _family(address: str) -> str:
    return f"IPv{ipaddress.ip_address(address).version}"
