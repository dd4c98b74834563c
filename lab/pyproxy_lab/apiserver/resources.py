"""The resources that are served: their names, groups and scopes."""

from __future__ import annotations

import msgspec


class Resource(msgspec.Struct, frozen=True):
    """One resource of one API group.

    `table` names where its objects are kept: both groups' events are the same objects. `model` is
    the class of the Kubernetes client that lists its fields. `deprecation` is a warning that comes
    with every object.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    model: str
    table: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    deprecation: str = ""

    @property
    def api_version(self) -> str:
        """The apiVersion field of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """The plural as error messages have it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_kind(self) -> str:
        """The kind as messages about invalid objects have it."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def root(self) -> str:
        """The path of its group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


NAMESPACES = Resource(
    "", "v1", "Namespace", "namespaces", "namespace", "V1Namespace", "namespaces",
    namespaced=False, short_names=("ns",), subresources=("status", "finalize"),
)  # fmt: skip
NODES = Resource(
    "", "v1", "Node", "nodes", "node", "V1Node", "nodes",
    namespaced=False, short_names=("no",), subresources=("status",),
)  # fmt: skip
SERVICES = Resource(
    "", "v1", "Service", "services", "service", "V1Service", "services",
    short_names=("svc",), categories=("all",), subresources=("status",),
)  # fmt: skip
PODS = Resource(
    "", "v1", "Pod", "pods", "pod", "V1Pod", "pods",
    short_names=("po",), categories=("all",),
    subresources=("status", "attach", "exec", "log", "portforward"),
)  # fmt: skip
CONFIG_MAPS = Resource(
    "", "v1", "ConfigMap", "configmaps", "configmap", "V1ConfigMap", "configmaps",
    short_names=("cm",),
)  # fmt: skip
SECRETS = Resource("", "v1", "Secret", "secrets", "secret", "V1Secret", "secrets")
SERVICE_ACCOUNTS = Resource(
    "", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount", "V1ServiceAccount",
    "serviceaccounts", short_names=("sa",),
)  # fmt: skip
ENDPOINTS = Resource(
    "", "v1", "Endpoints", "endpoints", "endpoints", "V1Endpoints", "endpoints",
    short_names=("ep",),
    deprecation="v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
)  # fmt: skip
DEPLOYMENTS = Resource(
    "apps", "v1", "Deployment", "deployments", "deployment", "V1Deployment", "deployments",
    short_names=("deploy",), categories=("all",), subresources=("status", "scale"),
)  # fmt: skip
REPLICA_SETS = Resource(
    "apps", "v1", "ReplicaSet", "replicasets", "replicaset", "V1ReplicaSet", "replicasets",
    short_names=("rs",), categories=("all",), subresources=("status", "scale"),
)  # fmt: skip
STATEFUL_SETS = Resource(
    "apps", "v1", "StatefulSet", "statefulsets", "statefulset", "V1StatefulSet", "statefulsets",
    short_names=("sts",), categories=("all",), subresources=("status", "scale"),
)  # fmt: skip
DAEMON_SETS = Resource(
    "apps", "v1", "DaemonSet", "daemonsets", "daemonset", "V1DaemonSet", "daemonsets",
    short_names=("ds",), categories=("all",), subresources=("status",),
)  # fmt: skip
CONTROLLER_REVISIONS = Resource(
    "apps", "v1", "ControllerRevision", "controllerrevisions", "controllerrevision",
    "V1ControllerRevision", "controllerrevisions",
)  # fmt: skip
ENDPOINT_SLICES = Resource(
    "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "endpointslice",
    "V1EndpointSlice", "endpointslices",
)  # fmt: skip
CORE_EVENTS = Resource(
    "", "v1", "Event", "events", "event", "CoreV1Event", "events", short_names=("ev",),
)  # fmt: skip
EVENTS = Resource(
    "events.k8s.io", "v1", "Event", "events", "event", "EventsV1Event", "events",
    short_names=("ev",),
)  # fmt: skip

RESOURCES = (
    NAMESPACES, NODES, SERVICES, PODS, CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS, ENDPOINTS,
    CORE_EVENTS, DEPLOYMENTS, REPLICA_SETS, STATEFUL_SETS, DAEMON_SETS, CONTROLLER_REVISIONS,
    ENDPOINT_SLICES, EVENTS,
)  # fmt: skip
"""Everything served. The first resource of a table is the form in which its objects are kept."""

STORED = {resource.table: resource for resource in reversed(RESOURCES)}

_BY_PATH = {(r.group, r.version, r.plural): r for r in RESOURCES}
_BY_KIND = {(r.api_version, r.kind): r for r in RESOURCES}


def split_path(path: str) -> tuple[str, str, list[str]] | None:
    """Split a path into group, version and the rest; None unless it is below /api or /apis."""
    match path.strip("/").split("/"):
        case ["api", version, *rest]:
            return "", version, rest
        case ["apis", group, version, *rest]:
            return group, version, rest
    return None


def by_path(group: str, version: str, plural: str) -> Resource | None:
    """Find the resource that a URL names."""
    return _BY_PATH.get((group, version, plural))


def by_kind(api_version: str, kind: str) -> Resource | None:
    """Find the resource that an object's apiVersion and kind name."""
    return _BY_KIND.get((api_version, kind))
