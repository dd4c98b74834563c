"""Plans of controllers for one object: writes and Events, as values."""

from __future__ import annotations

from typing import Any

import msgspec

from pyproxy_lab.client import JsonObject

MERGE = "application/merge-patch+json"

ROOTS = {
    "pods": "/api/v1",
    "nodes": "/api/v1",
    "events": "/api/v1",
    "endpoints": "/api/v1",
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "statefulsets": "/apis/apps/v1",
    "daemonsets": "/apis/apps/v1",
    "controllerrevisions": "/apis/apps/v1",
    "endpointslices": "/apis/discovery.k8s.io/v1",
}
"""The path of each resource's group and version."""

PLURALS = {
    "Pod": "pods",
    "Node": "nodes",
    "Deployment": "deployments",
    "ReplicaSet": "replicasets",
    "StatefulSet": "statefulsets",
    "DaemonSet": "daemonsets",
    "ControllerRevision": "controllerrevisions",
    "Endpoints": "endpoints",
}


class Write(msgspec.Struct, frozen=True):
    """A request to the API; `plural` is the resource that its response is one object of.

    `owner` is an object that must exist and not be being deleted when the write is made.
    """

    method: str
    plural: str
    path: str
    body: JsonObject | None = None
    owner: JsonObject | None = None


class Happening(msgspec.Struct, frozen=True):
    """An Event about an object: `type` is Normal or Warning."""

    about: JsonObject
    type: str
    reason: str
    message: str


class Plan(msgspec.Struct, frozen=True):
    """Writes in their order, Events, and the seconds until the object is looked at again."""

    writes: tuple[Write, ...] = ()
    events: tuple[Happening, ...] = ()
    again: float | None = None


def collection(plural: str, namespace: str) -> str:
    """Return the path of the objects of one kind in a namespace."""
    return f"{ROOTS[plural]}/namespaces/{namespace}/{plural}"


def path_of(plural: str, obj: JsonObject) -> str:
    """Return the path of an object."""
    meta = obj["metadata"]
    return f"{collection(plural, meta['namespace'])}/{meta['name']}"


def create(plural: str, obj: JsonObject) -> Write:
    """Create an object in its namespace."""
    return Write("POST", plural, collection(plural, obj["metadata"]["namespace"]), obj)


def patch(plural: str, obj: JsonObject, changes: JsonObject) -> Write:
    """Change some fields of an object by a merge patch."""
    return Write("PATCH", plural, path_of(plural, obj), changes)


def adopt(plural: str, obj: JsonObject, owner: JsonObject, changes: JsonObject) -> Write:
    """Change an object by a merge patch while an owner exists."""
    return Write("PATCH", plural, path_of(plural, obj), changes, owner)


def set_status(plural: str, obj: JsonObject, status: dict[str, Any]) -> tuple[Write, ...]:
    """Set fields of an object's status, unless they have these values."""
    before = obj.get("status") or {}
    if all(before.get(name) == value for name, value in status.items()):
        return ()
    return (Write("PATCH", plural, f"{path_of(plural, obj)}/status", {"status": status}),)


def delete(plural: str, obj: JsonObject) -> Write:
    """Delete an object, if it is still the same."""
    body = {"preconditions": {"uid": obj["metadata"]["uid"]}}
    return Write("DELETE", plural, path_of(plural, obj), body)


def delete_unchanged(plural: str, obj: JsonObject) -> Write:
    """Delete an object, if this is still its newest version."""
    meta = obj["metadata"]
    body = {"preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}}
    return Write("DELETE", plural, path_of(plural, obj), body)
