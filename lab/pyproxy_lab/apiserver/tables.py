"""Tables, which `kubectl get` prints: columns by kind, and a row for each object."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from pyproxy_lab.apiserver.objects import Object
from pyproxy_lab.apiserver.resources import Resource
from pyproxy_lab.apiserver.scale import selector_text


class Column(msgspec.Struct, frozen=True):
    """A column; those of priority 1 show in `kubectl get -o wide`."""

    name: str
    value: Callable[[Object], object]
    priority: int = 0
    type: str = "string"


def table(resource: Resource, objects: list[Object], meta: Object, include: str) -> Object:
    """Lay objects out; `include` is what of each comes along: None, Metadata or Object."""
    columns = _COLUMNS[resource.kind]
    definitions = [
        {
            "name": column.name,
            "type": column.type,
            "format": "name" if column.name == "Name" else "",
            "description": f"{column.name} of the {resource.kind}",
            "priority": column.priority,
        }
        for column in columns
    ]
    rows = []
    for obj in objects:
        row: Object = {"cells": [column.value(obj) for column in columns]}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": obj["metadata"],
            }
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": definitions,
        "rows": rows,
    }


def duration(seconds: float) -> str:
    """Write an age as kubectl does: `5s`, `3m20s`, `2d4h`."""
    whole = max(int(seconds), 0)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    for limit, text in (
        (120, f"{whole}s"),
        (600, f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"),
        (10800, f"{minutes}m"),
        (28800, f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"),
        (172800, f"{hours}h"),
        (691200, f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"),
        (63072000, f"{days}d"),
    ):
        if whole < limit:
            return text
    return f"{days // 365}y{days % 365}d"


def _age(text: str | None) -> str:
    if not text:
        return "<unknown>"
    then = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return duration((datetime.now(UTC) - then).total_seconds())


def _name(obj: Object) -> object:
    return obj["metadata"]["name"]


def _created(obj: Object) -> object:
    return _age(obj["metadata"].get("creationTimestamp"))


def _selector(obj: Object) -> object:
    return _pairs(obj["spec"].get("selector") or {})


def _pairs(labels: dict[str, str]) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(labels.items())) or "<none>"


def _service_external(obj: Object) -> str:
    spec = obj["spec"]
    external = list(spec.get("externalIPs") or ())
    if spec["type"] == "ExternalName":
        return str(spec.get("externalName") or "<none>")
    if spec["type"] == "LoadBalancer":
        ingresses = obj["status"]["loadBalancer"].get("ingress") or ()
        given = [i.get("ip") or i.get("hostname", "") for i in ingresses]
        return ",".join(given + external) or "<pending>"
    return ",".join(external) or "<none>"


def _service_ports(obj: Object) -> str:
    return (
        ",".join(
            f"{p['port']}:{p['nodePort']}/{p['protocol']}"
            if p.get("nodePort")
            else f"{p['port']}/{p['protocol']}"
            for p in obj["spec"].get("ports") or ()
        )
        or "<none>"
    )


def _ready_containers(obj: Object) -> str:
    total = len(obj["spec"].get("containers") or ())
    statuses = obj["status"].get("containerStatuses") or ()
    ready = sum(1 for s in statuses if s.get("ready"))
    if not statuses and _condition(obj, "Ready") == "True":
        ready = total
    return f"{ready}/{total}"


def _restarts(obj: Object) -> object:
    return str(sum(s.get("restartCount", 0) for s in obj["status"].get("containerStatuses") or ()))


def _pod_status(obj: Object) -> str:
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for each in obj["status"].get("containerStatuses") or ():
        for kind in ("waiting", "terminated"):
            if reason := (each.get("state") or {}).get(kind, {}).get("reason"):
                return str(reason)
    return str(obj["status"].get("reason") or obj["status"].get("phase") or "Unknown")


def _condition(obj: Object, kind: str) -> str:
    for condition in obj.get("status", {}).get("conditions") or ():
        if condition.get("type") == kind:
            return str(condition.get("status", "Unknown"))
    return ""


def _node_status(obj: Object) -> str:
    word = {"True": "Ready", "False": "NotReady"}.get(_condition(obj, "Ready"), "Unknown")
    return f"{word},SchedulingDisabled" if obj["spec"].get("unschedulable") else word


def _node_roles(obj: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    roles = sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))
    return ",".join(roles) or "<none>"


def _node_address(kind: str) -> Callable[[Object], object]:
    def value(obj: Object) -> object:
        for address in obj["status"].get("addresses") or ():
            if address.get("type") == kind:
                return address.get("address", "")
        return "<none>"

    return value


def _node_info(field: str) -> Callable[[Object], object]:
    return lambda obj: obj["status"].get("nodeInfo", {}).get(field) or "<unknown>"


def _slice_ports(obj: Object) -> str:
    return _some([str(p.get("port", "*")) for p in obj.get("ports") or ()], "<unset>")


def _slice_endpoints(obj: Object) -> str:
    found = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
    return _some(found, "<unset>")


def _some(texts: list[str], none: str) -> str:
    most = 3
    more = f" + {len(texts) - most} more..." if len(texts) > most else ""
    return ",".join(texts[:most]) + more if texts else none


def _event_seen(obj: Object) -> object:
    last = obj.get("lastTimestamp") or (obj.get("series") or {}).get("lastObservedTime")
    first = last or obj.get("eventTime") or obj["metadata"].get("creationTimestamp")
    return _age(first)


def _event_object(obj: Object) -> object:
    involved = obj.get("involvedObject") or obj.get("regarding") or {}
    return f"{involved.get('kind', '').lower()}/{involved.get('name', '')}"


def _field(*path: str, none: str = "") -> Callable[[Object], object]:
    def value(obj: Object) -> object:
        found: object = obj
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        return none if found in (None, "") else found

    return value


def _containers(field: str) -> Callable[[Object], object]:
    def value(obj: Object) -> object:
        return ",".join(c.get(field, "") for c in obj["spec"]["template"]["spec"]["containers"])

    return value


def _label_selector(obj: Object) -> object:
    return selector_text(obj["spec"].get("selector") or {}) or "<none>"


def _status_number(name: str) -> Callable[[Object], object]:
    return lambda obj: str(obj.get("status", {}).get(name, 0))


def _ready_of_wanted(obj: Object) -> str:
    return f"{obj['status'].get('readyReplicas', 0)}/{obj['spec'].get('replicas', 0)}"


def _count(field: str) -> Callable[[Object], object]:
    return lambda obj: str(len(obj.get(field) or ()))


def _subset_endpoints(obj: Object) -> str:
    found = []
    for subset in obj.get("subsets") or ():
        ports = subset.get("ports") or [{}]
        for address in subset.get("addresses") or ():
            ip = address["ip"]
            host = f"[{ip}]" if ":" in ip else ip
            found += [f"{host}:{port['port']}" if port else ip for port in ports]
    return _some(found, "<none>")


def _node_selector(obj: Object) -> object:
    return _pairs(obj["spec"]["template"]["spec"].get("nodeSelector") or {})


def _controller(obj: Object) -> object:
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return (
                f"{owner['kind'].lower()}.{owner['apiVersion'].partition('/')[0]}/{owner['name']}"
            )
    return "<none>"


_NAME = Column("Name", _name)
_CONTAINERS = (
    Column("Containers", _containers("name"), 1),
    Column("Images", _containers("image"), 1),
)
_SELECTOR = Column("Selector", _label_selector, 1)
_AGE = Column("Age", _created)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "Namespace": (_NAME, Column("Status", _field("status", "phase")), _AGE),
    "Node": (
        _NAME,
        Column("Status", _node_status),
        Column("Roles", _node_roles),
        _AGE,
        Column("Version", _field("status", "nodeInfo", "kubeletVersion")),
        Column("Internal-IP", _node_address("InternalIP"), 1),
        Column("External-IP", _node_address("ExternalIP"), 1),
        Column("OS-Image", _node_info("osImage"), 1),
        Column("Kernel-Version", _node_info("kernelVersion"), 1),
        Column("Container-Runtime", _node_info("containerRuntimeVersion"), 1),
    ),
    "Service": (
        _NAME,
        Column("Type", _field("spec", "type")),
        Column("Cluster-IP", _field("spec", "clusterIP", none="<none>")),
        Column("External-IP", _service_external),
        Column("Port(s)", _service_ports),
        _AGE,
        Column("Selector", _selector, 1),
    ),
    "Pod": (
        _NAME,
        Column("Ready", _ready_containers),
        Column("Status", _pod_status),
        Column("Restarts", _restarts),
        _AGE,
        Column("IP", _field("status", "podIP", none="<none>"), 1),
        Column("Node", _field("spec", "nodeName", none="<none>"), 1),
        Column("Nominated Node", _field("status", "nominatedNodeName", none="<none>"), 1),
        Column("Readiness Gates", lambda obj: "<none>", 1),  # noqa: ARG005
    ),
    "EndpointSlice": (
        _NAME,
        Column("AddressType", _field("addressType")),
        Column("Ports", _slice_ports),
        Column("Endpoints", _slice_endpoints),
        _AGE,
    ),
    "ConfigMap": (_NAME, Column("Data", _count("data")), _AGE),
    "Secret": (_NAME, Column("Type", _field("type")), Column("Data", _count("data")), _AGE),
    "ServiceAccount": (_NAME, Column("Secrets", _count("secrets")), _AGE),
    "Endpoints": (_NAME, Column("Endpoints", _subset_endpoints), _AGE),
    "Deployment": (
        _NAME,
        Column("Ready", _ready_of_wanted),
        Column("Up-to-date", _status_number("updatedReplicas")),
        Column("Available", _status_number("availableReplicas")),
        _AGE,
        *_CONTAINERS,
        _SELECTOR,
    ),
    "ReplicaSet": (
        _NAME,
        Column("Desired", lambda obj: str(obj["spec"].get("replicas", 0))),
        Column("Current", _status_number("replicas")),
        Column("Ready", _status_number("readyReplicas")),
        _AGE,
        *_CONTAINERS,
        _SELECTOR,
    ),
    "StatefulSet": (_NAME, Column("Ready", _ready_of_wanted), _AGE, *_CONTAINERS),
    "DaemonSet": (
        _NAME,
        Column("Desired", _status_number("desiredNumberScheduled")),
        Column("Current", _status_number("currentNumberScheduled")),
        Column("Ready", _status_number("numberReady")),
        Column("Up-to-date", _status_number("updatedNumberScheduled")),
        Column("Available", _status_number("numberAvailable")),
        Column("Node Selector", _node_selector),
        _AGE,
        *_CONTAINERS,
        _SELECTOR,
    ),
    "ControllerRevision": (
        _NAME,
        Column("Controller", _controller),
        Column("Revision", lambda obj: str(obj.get("revision", 0))),
        _AGE,
    ),
    "Event": (
        Column("Last Seen", _event_seen),
        Column("Type", _field("type")),
        Column("Reason", _field("reason")),
        Column("Object", _event_object),
        Column("Message", _field("message")),
        Column("Name", _name, 1),
    ),
}
