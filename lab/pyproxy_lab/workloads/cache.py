"""The objects that the controllers know, and which of them a change concerns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyproxy_lab.client import JsonObject
from pyproxy_lab.endpointslices import SERVICE_NAME
from pyproxy_lab.workloads import objects
from pyproxy_lab.workloads.plan import PLURALS, Plan, delete_unchanged
from pyproxy_lab.workloads.work_queue import Key

KINDS = {
    "services": ("v1", "Service"),
    "pods": ("v1", "Pod"),
    "nodes": ("v1", "Node"),
    "endpoints": ("v1", "Endpoints"),
    "endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "deployments": ("apps/v1", "Deployment"),
    "replicasets": ("apps/v1", "ReplicaSet"),
    "statefulsets": ("apps/v1", "StatefulSet"),
    "daemonsets": ("apps/v1", "DaemonSet"),
    "controllerrevisions": ("apps/v1", "ControllerRevision"),
}
"""The apiVersion and kind of each resource that is followed."""

OWNERS = ("deployments", "replicasets", "statefulsets", "daemonsets")
_OWNED = ("replicasets", "pods", "controllerrevisions")
GARBAGE = "garbage/"
"""Begins the resource of a key that asks whether an object's owner still exists."""


class Cache:
    """Objects by resource, namespace and name; the followers keep them up to date."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], JsonObject]] = {each: {} for each in KINDS}

    def get(self, key: Key) -> JsonObject | None:
        """Return one object."""
        return self.objects[key.plural].get((key.namespace, key.name))

    def within(self, plural: str, namespace: str) -> list[JsonObject]:
        """Return the objects of one kind in a namespace."""
        return [obj for (space, _), obj in self.objects[plural].items() if space == namespace]

    def nodes(self) -> dict[str, JsonObject]:
        """Return the nodes by name."""
        return {name: node for (_, name), node in self.objects["nodes"].items()}

    def lost_owner(self, obj: JsonObject) -> bool:
        """Return whether an object's controller, of a kind that is followed, no longer exists."""
        owner = objects.controller_of(obj)
        if owner is None or owner["kind"] not in PLURALS:
            return False
        key = Key(PLURALS[owner["kind"]], obj["metadata"]["namespace"], owner["name"])
        found = self.get(key)
        return found is None or found["metadata"]["uid"] != owner["uid"]

    def plan_garbage(self, key: Key) -> Plan:
        """Delete an object whose owner is gone."""
        found = self.get(key)
        if found is None or objects.is_leaving(found) or not self.lost_owner(found):
            return Plan()
        # An orphan's own change may come after its owner's end, on another watch.
        return Plan((delete_unchanged(key.plural, found),))

    def concerned(
        self, plural: str, old: JsonObject | None, new: JsonObject | None
    ) -> Iterator[Key]:
        """Return the objects to look at after a change."""
        changed = new or old
        if changed is None:
            return
        meta = changed["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        if plural in OWNERS or plural in {"services", "endpoints"}:
            # Endpoints have the name of their Service.
            yield Key("services" if plural == "endpoints" else plural, namespace, name)
        if plural == "pods" and new is not None and not new["spec"].get("nodeName"):
            yield Key("pods", namespace, name)
        if plural == "endpointslices":
            for each in filter(None, (old, new)):
                if service := (each["metadata"].get("labels") or {}).get(SERVICE_NAME):
                    yield Key("services", namespace, service)
        if plural == "nodes":
            yield from self._after_node()
        if plural in _OWNED:
            yield from self._after_owned(plural, filter(None, (old, new)), present=bool(new))
        if plural in OWNERS and new is None:
            for owned in _OWNED:
                for each in self.within(owned, namespace):
                    owner = objects.controller_of(each)
                    if owner is not None and owner["uid"] == meta["uid"]:
                        yield Key(GARBAGE + owned, namespace, each["metadata"]["name"])

    def _after_node(self) -> Iterator[Key]:
        for namespace, name in self.objects["daemonsets"]:
            yield Key("daemonsets", namespace, name)
        for (namespace, name), pod in self.objects["pods"].items():
            if not pod["spec"].get("nodeName"):
                yield Key("pods", namespace, name)

    def _after_owned(
        self, plural: str, versions: Iterable[JsonObject], *, present: bool
    ) -> Iterator[Key]:
        for obj in versions:
            meta = obj["metadata"]
            owner = objects.controller_of(obj)
            if owner is not None and owner["kind"] in PLURALS:
                yield Key(PLURALS[owner["kind"]], meta["namespace"], owner["name"])
                if present:
                    yield Key(GARBAGE + plural, meta["namespace"], meta["name"])
            elif owner is None and present:
                # Something may adopt it.
                for kind in OWNERS:
                    for candidate in self.within(kind, meta["namespace"]):
                        yield Key(kind, meta["namespace"], candidate["metadata"]["name"])
